"""Planes <-> bytes for a general coder, as the contest packs: codes row-major at the narrowest width, scales as they are.

Reconstruction needs no more, so a trellis plane comes back as a plane of plain codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError
from pgolf.packer.coder import general
from pgolf.packer.coder.classes import narrowed
from pgolf.packer.coder.codec import MAX_CODES, MAX_SIDE, PER_OCTAVES, all_integers
from pgolf.packer.plane import HALF, Plane, Scale

NO_SCALE = -1
_CODES = {1: "<i1", 2: "<i2", 4: "<i4"}
_HALF, _INDEX = "<u2", "<i4"


def encode(planes: Sequence[Plane]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """(sections, header fields)."""
    parts: dict[str, list[bytes]] = {}
    records = []
    for plane in planes:
        for name, data in _pieces(plane):
            parts.setdefault(name, []).append(data)
        steps = [NO_SCALE if s is None else s.per_octave for s in (plane.row_scale, plane.col_scale)]
        records.append([*plane.codes.shape, *steps, _width(plane.codes)])
    return {name: b"".join(data) for name, data in parts.items() if any(data)}, {"planes": records}


def bits(planes: Sequence[Plane], stored: Mapping[str, general.Compressed]) -> list[float]:
    """Of each plane in the compressed sections of `encode`, see general.shares."""
    pieces: dict[str, list[tuple[int, bytes]]] = {}
    for number, plane in enumerate(planes):
        for name, data in _pieces(plane):
            pieces.setdefault(name, []).append((number, data))
    own = [0.0] * len(planes)
    for name, mine in pieces.items():
        if (section := stored.get(name)) is None:
            continue
        shares = general.shares([data for _, data in mine], len(section.data), section.codec, section.shuffle)
        for (number, _), share in zip(mine, shares, strict=True):
            own[number] += 8 * share
    return own


def _pieces(plane: Plane) -> Iterator[tuple[str, bytes]]:
    """(section, bytes): codes, row scale, column scale."""
    width = _width(plane.codes)
    yield f"codes.{width}", plane.codes.astype(_CODES[width]).tobytes()
    for scale in (plane.row_scale, plane.col_scale):
        if scale is not None:
            name, kind = ("half", _HALF) if scale.per_octave == HALF else ("index", _INDEX)
            yield name, scale.index.astype(kind).tobytes()


def _width(codes: NDArray[np.signedinteger]) -> int:
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    return next(w for w in _CODES if -(1 << (8 * w - 1)) <= low and high < 1 << (8 * w - 1))


def check_planes(records: Sequence[Any]) -> None:
    """Raises ArtifactError unless all are [rows, cols, steps an octave of the row and column scale, bytes a code]."""
    for record in records:
        good = isinstance(record, list) and len(record) == 5 and all_integers(record)
        if not good or not 0 <= min(record[:2]) <= max(record[:2]) < MAX_SIDE or record[4] not in _CODES:
            raise ArtifactError("a plane record is malformed: the artifact is damaged")
        if not set(record[2:4]) <= PER_OCTAVES | {NO_SCALE}:
            raise ArtifactError("a plane record is out of range: the artifact is damaged")
    if sum(rows * cols for rows, cols, *_ in records) > MAX_CODES:
        raise ArtifactError("the artifact declares more codes than pgolf reads: it is damaged")


def section_limits(records: Sequence[list[int]]) -> dict[str, tuple[int, int]]:
    """Section name -> (fewest, most) raw bytes: here they are known exactly."""
    sizes = {f"codes.{w}": w * sum(r * c for r, c, _, _, width in records if width == w) for w in _CODES}
    scales = [scale for rows, cols, row, col, _ in records for scale in ((row, rows), (col, cols))]
    sizes["half"] = 2 * sum(n for steps, n in scales if steps == HALF)
    sizes["index"] = 4 * sum(n for steps, n in scales if steps > HALF)
    return {name: (size, size) for name, size in sizes.items()}


def read(head: Mapping[str, Any], sections: Mapping[str, bytes], numbers: range | None = None) -> list[Plane]:
    """The inverse of `encode`; the sections have the sizes of `section_limits`. numbers: of the planes that are wanted,
    None for all: no section is looked at that holds nothing of them."""
    rest = dict[str, int]()

    def take(name: str, kind: str, count: int) -> NDArray[Any]:
        if not count:
            return np.zeros(0, kind)
        first = rest.get(name, 0)
        rest[name] = first + count * np.dtype(kind).itemsize
        if not wanted:
            return np.zeros(0, kind)
        return np.frombuffer(sections[name], kind, count, first)

    def scale(steps: int, count: int) -> Scale | None:
        if steps == NO_SCALE:
            return None
        name, kind = ("half", _HALF) if steps == HALF else ("index", _INDEX)
        return Scale(take(name, kind, count).astype(np.int32), steps)

    planes = []
    for number, (rows, cols, row_steps, col_steps, width) in enumerate(head["planes"]):
        wanted = numbers is None or number in numbers
        codes = take(f"codes.{width}", _CODES[width], rows * cols)
        scales = scale(row_steps, rows), scale(col_steps, cols)
        if wanted:
            planes.append(Plane(narrowed(codes.reshape(rows, cols)), *scales))
    return planes
