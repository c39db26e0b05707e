"""Where the bytes of an artifact go, and how two artifacts differ: facts as JSON, for `pgolf inspect` and `pgolf diff`.

A file does not say how many bytes each tensor has: coded matrices share tables and streams. The decoded artifact is
coded once more, and the coder counts. What belongs to no tensor (configuration, tables, lane ends) is given as "shared".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.errors import CurvatureError, UsageError
from pgolf.loading import dense
from pgolf.packer.format import artifact, container, shares
from pgolf.packer.format.artifact import Entry
from pgolf.packer.format.shares import Shares
from pgolf.quant.curvature.loss import loss_rise
from pgolf.quant.curvature.store import Curvature

BARS = 8  # of a histogram, on either side of zero
_NUMBER = re.compile(r"(^|\.)\d+(?=\.|$)")


def inspect(path: str | Path, curvature: Curvature | None = None) -> dict[str, Any]:
    """What is in an artifact, as JSON-able facts: total bytes, meta, tensors, layers, and buffers that were dropped.

    Of a tensor: shape, dtype, note, bytes (what it adds to the file, header_bytes of them for its name and shape),
    bits_per_weight; of a quantized one also code_range, histogram (see there) and, with curvature, curvature_share.
    Raises ArtifactError, and CurvatureError where the curvature belongs to another model.
    """
    entries, meta = dense.read(path)
    data = dense.file_of(path).read_bytes()
    held = bytes_by_tensor(data, entries, meta)
    costs = curvature_shares(entries, curvature) if curvature else {}
    tensors = [_facts(name, entry, held, costs.get(name)) for name, entry in entries.items()]
    return {
        "bytes": len(data),
        "shared_bytes": held.shared,
        "weights": sum(t["weights"] for t in tensors),
        "tensors": tensors,
        "layers": _layers(tensors),
        "dropped": dense.dropped_of(meta),
        "meta": meta,
    }


def bytes_by_tensor(data: bytes, entries: Mapping[str, Entry], meta: Mapping[str, Any]) -> Shares:
    """What each tensor adds to an artifact that was decoded to `entries` and `meta`."""
    coder = container.parse(data)[0]["coder"]
    return shares.of(data, entries, artifact.encode(entries, meta, coder).tensor_bits)


def _facts(name: str, entry: Entry, held: Shares, share: float | None) -> dict[str, Any]:
    weights = 0 if entry.alias is not None else math.prod(entry.shape)
    facts: dict[str, Any] = {
        "name": name,
        "layer": layer_of(name),
        "shape": list(entry.shape),
        "dtype": entry.dtype,
        "note": entry.note,
        "weights": weights,
        "bytes": held.tensors[name],
        "header_bytes": held.headers[name],
        "bits_per_weight": _bits(held, name, weights),
    }
    if entry.alias is not None:
        return facts | {"shared_with": entry.alias}
    if entry.planes is None:
        return facts | {"kept_as": entry.stored or entry.dtype}
    codes = [p.codes for p in entry.planes]
    return facts | {
        "planes": len(codes),
        "trellis": max(p.trellis for p in entry.planes),
        "code_range": [min(int(c.min()) for c in codes), max(int(c.max()) for c in codes)],
        "histogram": histogram(np.concatenate([c.ravel() for c in codes])),
        "curvature_share": share,
    }


def _bits(held: Shares, name: str, weights: int) -> float:
    """Bits a weight of what a tensor holds, without its name and shape."""
    return 8 * (held.tensors[name] - held.headers[name]) / weights if weights else 0.0


def histogram(codes: NDArray[np.signedinteger]) -> dict[str, Any]:
    """17 counts of codes, those within `width` integers together; the outermost hold everything beyond.

    width: the smallest power of two that leaves at most 2% beyond.
    """
    size, width = np.abs(codes.astype(np.int64)), 1
    while (size > BARS * width).mean() > 0.02:
        width *= 2
    bars = np.clip((codes.astype(np.int64) + width // 2) // width, -BARS, BARS) + BARS
    return {"width": width, "counts": np.bincount(bars, minlength=2 * BARS + 1).tolist()}


def layer_of(name: str) -> str:
    """ "blocks.3.attn.q.weight" -> "blocks.3"; a name without a number stands for itself."""
    match = _NUMBER.search(name)
    return name[: match.end()] if match else name


def _layers(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bytes, weights and curvature share by layer, in the order of the model's numbers."""
    layers = []
    for layer in dict.fromkeys(t["layer"] for t in tensors):
        mine = [t for t in tensors if t["layer"] == layer]
        weights = sum(t["weights"] for t in mine)
        known = [t["curvature_share"] for t in mine if t.get("curvature_share") is not None]
        layers.append(
            {
                "layer": layer,
                "weights": weights,
                "bytes": sum(t["bytes"] for t in mine),
                "bits_per_weight": sum(t["bits_per_weight"] * t["weights"] for t in mine) / max(weights, 1),
                "curvature_share": sum(known) if known else None,
            }
        )
    return sorted(layers, key=lambda row: [int(w) if w.isdigit() else w for w in re.split(r"(\d+)", row["layer"])])


def curvature_shares(entries: Mapping[str, Entry], curvature: Curvature) -> dict[str, float]:
    """Quantized tensor -> its share of Σ ½·tr(G W H Wᵀ): of what an equally small relative error costs everywhere.

    Raises CurvatureError where nothing fits.
    """
    costs = {}
    for name, entry in entries.items():
        known = curvature.matrices(name) if entry.planes is not None else None
        if known is None or entry.planes is None:
            continue
        weights = [torch.from_numpy(p.reconstruct()) for p in entry.planes]
        if len(known) != len(weights) or any(
            c is not None and c.H.shape[-1] != w.shape[1] for c, w in zip(known, weights, strict=False)
        ):
            raise CurvatureError(f"the curvature of {name!r} has another shape: it was collected on another model")
        costs[name] = sum(loss_rise(w, c) for w, c in zip(weights, known, strict=True) if c is not None)
    total = sum(costs.values())
    if total <= 0:
        raise CurvatureError("the curvature names none of the artifact's tensors: it was collected on another model")
    return {name: cost / total for name, cost in costs.items()}


def diff(a: str | Path, b: str | Path) -> dict[str, Any]:
    """How artifact `b` differs from `a`: bytes, bits a weight and ‖A − B‖/‖A‖ by tensor, as JSON-able facts.

    A tensor that one of them lacks, or that has another shape, has no distance. Raises ArtifactError, and UsageError
    where the two share no tensor.
    """
    sides = []
    for path in (a, b):
        entries, meta = dense.read(path)
        data = dense.file_of(path).read_bytes()
        sides.append((entries, dense.tensors_of(entries), bytes_by_tensor(data, entries, meta), len(data)))
    (entries_a, state_a, held_a, total_a), (entries_b, state_b, held_b, total_b) = sides
    if not state_a.keys() & state_b.keys():
        raise UsageError(f"{a} and {b} have no tensor in common: they hold different models")
    rows = [
        {
            "name": name,
            "a": _side(entries_a, name, held_a),
            "b": _side(entries_b, name, held_b),
            "distance": _distance(state_a.get(name), state_b.get(name)),
        }
        for name in sorted(state_a.keys() | state_b.keys())
    ]
    return {"a": str(a), "b": str(b), "bytes": [total_a, total_b], "tensors": rows}


def _side(entries: Mapping[str, Entry], name: str, held: Shares) -> dict[str, Any] | None:
    if (entry := entries.get(name)) is None:
        return None
    weights = 0 if entry.alias is not None else math.prod(entry.shape)
    how = f"shared with {entry.alias}" if entry.alias is not None else entry.note
    return {
        "shape": list(entry.shape),
        "how": how,
        "bytes": held.tensors[name],
        "bits_per_weight": _bits(held, name, weights),
    }


def _distance(a: Tensor | None, b: Tensor | None) -> float | None:
    if a is None or b is None or a.shape != b.shape:
        return None
    x, y = a.double(), b.double()
    norm, error = float(x.norm()), float((x - y).norm())
    return error / norm if norm else (0.0 if error == 0 else math.inf)
