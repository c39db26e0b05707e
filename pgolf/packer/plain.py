"""Planes <-> bytes for a general coder, as the contest packs: codes row-major at the narrowest width, scales as they are.

What will surprise you: nothing is said of trellis or spread, because reconstruction needs codes and scales only. A
trellis plane comes back as a plane of plain codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError
from pgolf.packer.codec import MAX_CODES, MAX_SIDE, NO_SCALE, PER_OCTAVES, all_integers
from pgolf.packer.plane import HALF, Plane, Scale
from pgolf.packer.spread import narrowed

_CODES = {1: "<i1", 2: "<i2", 4: "<i4"}
_HALF, _INDEX = "<u2", "<i4"


@dataclass(frozen=True)
class Record:
    """One plane's entry in the header: shape, steps an octave of its scales (or NO_SCALE, HALF), bytes a code."""

    rows: int
    cols: int
    row_scale: int
    col_scale: int
    width: int

    @staticmethod
    def parse(fields: Any) -> Record:
        """Raises ArtifactError."""
        if isinstance(fields, list) and len(fields) == 5 and all_integers(fields):
            record = Record(*fields)
            sizes = min(record.rows, record.cols) >= 0 and max(record.rows, record.cols) < MAX_SIDE
            if sizes and {record.row_scale, record.col_scale} <= PER_OCTAVES and record.width in _CODES:
                return record
        raise ArtifactError("a plane record is malformed: the artifact is damaged")

    def scales(self) -> list[tuple[int, int]]:
        """(steps an octave, length) of the row and the column scale."""
        return [(self.row_scale, self.rows), (self.col_scale, self.cols)]


def encode(planes: Sequence[Plane]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """(sections, header fields)."""
    parts: dict[str, list[bytes]] = {}
    records = []
    for plane in planes:
        width = _width(plane.codes)
        parts.setdefault(f"codes.{width}", []).append(plane.codes.astype(_CODES[width]).tobytes())
        for scale in (plane.row_scale, plane.col_scale):
            if scale is not None:
                name, kind = ("half", _HALF) if scale.per_octave == HALF else ("index", _INDEX)
                parts.setdefault(name, []).append(scale.index.astype(kind).tobytes())
        steps = [NO_SCALE if s is None else s.per_octave for s in (plane.row_scale, plane.col_scale)]
        records.append([*plane.codes.shape, *steps, width])
    return {name: b"".join(data) for name, data in parts.items() if any(data)}, {"planes": records}


def _width(codes: NDArray[np.signedinteger]) -> int:
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    return next(w for w in _CODES if -(1 << (8 * w - 1)) <= low and high < 1 << (8 * w - 1))


def parse(head: dict[str, Any]) -> list[Record]:
    """The records of the planes, checked. Raises ArtifactError."""
    records = [Record.parse(fields) for fields in head["planes"]]
    if sum(r.rows * r.cols for r in records) > MAX_CODES:
        raise ArtifactError("the artifact declares more codes than pgolf reads: it is damaged")
    return records


def section_limits(records: Sequence[Record]) -> dict[str, tuple[int, int]]:
    """Section name -> (fewest, most) raw bytes: here they are known exactly."""
    sizes = {f"codes.{w}": w * sum(r.rows * r.cols for r in records if r.width == w) for w in _CODES}
    scales = [scale for r in records for scale in r.scales()]
    sizes["half"] = 2 * sum(n for steps, n in scales if steps == HALF)
    sizes["index"] = 4 * sum(n for steps, n in scales if steps > HALF)
    return {name: (size, size) for name, size in sizes.items()}


def decode(sections: dict[str, bytes], records: Sequence[Record]) -> list[Plane]:
    """The inverse of `encode`; the sections have the sizes of `section_limits`."""
    rest = {name: memoryview(data) for name, data in sections.items()}

    def take(name: str, kind: str, count: int) -> NDArray[Any]:
        if not count:
            return np.zeros(0, kind)
        size = count * np.dtype(kind).itemsize
        piece, rest[name] = rest[name][:size], rest[name][size:]
        return np.frombuffer(piece, kind)

    def scale(steps: int, count: int) -> Scale | None:
        if steps == NO_SCALE:
            return None
        name, kind = ("half", _HALF) if steps == HALF else ("index", _INDEX)
        return Scale(take(name, kind, count).astype(np.int32), steps)

    planes = []
    for r in records:
        codes = narrowed(take(f"codes.{r.width}", _CODES[r.width], r.rows * r.cols).reshape(r.rows, r.cols))
        row_scale, col_scale = (scale(*each) for each in r.scales())
        planes.append(Plane(codes, row_scale, col_scale))
    return planes
