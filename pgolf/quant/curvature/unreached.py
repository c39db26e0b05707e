"""What no calibration token came to is not free: it costs what its kind costs in the mean."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from pgolf.quant.curvature.store import Curvature, MatrixCurvature, mean_of

Known = Mapping[str, list[MatrixCurvature | None]]
Shape = tuple[int, int, int]  # slices, rows, columns


def priced(
    known: Known, shapes: Mapping[str, Shape], unreached: Iterable[str]
) -> dict[str, list[MatrixCurvature | None]]:
    """`known`, with the mean curvature of their kind for the `unreached` tensors, and for slices without any.

    One kind are matrices of one shape whose names differ in numbers only (experts.3.up, experts.4.up), and the slices
    of a bank. Where nobody of the kind was reached, nothing is known.
    """
    kinds: dict[tuple[str, int, int], list[MatrixCurvature]] = defaultdict(list)
    for name, slices in known.items():
        kinds[_kind(name, shapes[name])] += [c for c in slices if c is not None]
    missing: dict[str, list[MatrixCurvature | None]] = {
        name: [None] * shapes[name][0] for name in unreached if name in shapes and name not in known
    }
    out: dict[str, list[MatrixCurvature | None]] = {}
    for name, slices in (*known.items(), *missing.items()):
        kind = kinds.get(_kind(name, shapes[name]))
        if kind and any(c is None for c in slices):
            mean = mean_of(kind)
            slices = [mean if c is None else c for c in slices]
        if name in known or kind:
            out[name] = slices
    return out


def names_of(curvature: Curvature, shapes: Mapping[str, Shape], unreached: Iterable[str]) -> list[str]:
    """The tensors, and slices of banks, that no token came to: for a line in the report."""
    seen = {name: curvature.seen(name) for name, shape in shapes.items() if shape[0] > 1}
    slices = [f"{name}[{k}]" for name, some in seen.items() if some for k in range(shapes[name][0]) if k not in some]
    return [*slices, *(name for name in unreached if name in shapes)]


def _kind(name: str, shape: Shape) -> tuple[str, int, int]:
    return re.sub(r"\d+", "#", name), shape[1], shape[2]
