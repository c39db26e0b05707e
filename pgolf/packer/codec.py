"""Planes <-> bytes: the codes in one rANS stream, and what describes them (scales, spread classes) in another.

What will surprise you:
* A vector of scale or class indices is itself coded as a plane, one column wide, with one class. Nothing special.
* The rows' spread classes are coded as they are or as their sum with the row scale's octaves, whichever varies less:
  where a quantizer chose steps in proportion to the weights' spread, one says nearly everything about the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError
from pgolf.packer import spread, stream
from pgolf.packer.plane import HALF, SPREAD_STEPS, Plane, Scale, Spread
from pgolf.packer.stream import Layout
from pgolf.packer.threads import on_threads
from pgolf.packer.trellis import PARITY_CHECKS

Array = NDArray[Any]

MODES = get_args(spread.Mode)
NO_SCALE = -1
PER_OCTAVES = {NO_SCALE, HALF, 1, 2, 4, 8, 16, 32, 64}
MAX_CODES = 1 << 33
MAX_SIDE = 1 << 31  # rows or columns of one plane
MAX_INDEX = 1 << 20  # of scales and spread classes
SIDE_LANE_BYTES = 600  # index vectors are few: short lanes cost nothing that counts, and numpy takes fewer steps


@dataclass(frozen=True)
class Packed:
    """sections: name -> bytes; head: JSON-able; plane_bits, side_bits: of each plane's codes and description;
    ideal_bits: see stream.Coded."""

    sections: dict[str, bytes]
    head: dict[str, Any]
    plane_bits: list[float]
    side_bits: list[float]
    ideal_bits: float


@dataclass(frozen=True)
class _Vector:
    """Index vector = base + residual (− the octaves of the scale it follows, in spread steps). spread_class: of residual."""

    residual: Array
    base: int
    follows: int
    spread_class: int


def encode(planes: Sequence[Plane]) -> Packed:
    """Code planes. Raises ValueError on codes that break the trellis rule (a quantizer's bug)."""
    choices = on_threads(spread.choose, planes)
    described = [_describe(plane, choice) for plane, choice in zip(planes, choices, strict=True)]
    vectors = [v for mine, _ in described for v in mine]
    halves = [h for _, half in described for h in half]
    side = stream.encode(
        [v.residual[:, None] for v in vectors],
        [_vector_layout(len(v.residual), v.spread_class, 0) for v in vectors],
        "side",
        SIDE_LANE_BYTES,
    )
    layouts = [Layout(p.codes.shape, c.spread, p.trellis, p.trellis_from) for p, c in zip(planes, choices, strict=True)]
    main = stream.encode([plane.codes for plane in planes], layouts, "codes")
    half_bits = np.concatenate([*halves, np.zeros(0, np.int32)]).astype("<u2").tobytes()
    head = {
        "planes": [
            _record(plane, choice, mine, family)
            for plane, choice, (mine, _), family in zip(planes, choices, described, main.families, strict=True)
        ],
        "lanes": [side.lanes, main.lanes],
        "families": side.families,
    }
    sections = side.sections | main.sections | ({"half": half_bits} if half_bits else {})
    bits, taken = iter(side.bits), []
    for mine, half in described:
        taken.append(sum(next(bits) for _ in mine) + 16.0 * sum(map(len, half)))
    return Packed(sections, head, main.bits, taken, main.ideal_bits)


def _record(plane: Plane, choice: spread.Choice, vectors: Sequence[_Vector], family: int) -> list[Any]:
    """The fields of Record."""
    one = choice.mode == "one" and len(choice.spread.rows) > 0
    return [
        *plane.codes.shape,
        NO_SCALE if plane.row_scale is None else plane.row_scale.per_octave,
        NO_SCALE if plane.col_scale is None else plane.col_scale.per_octave,
        plane.trellis,
        plane.trellis_from,
        MODES.index(choice.mode),
        int(choice.spread.rows[0]) if one else 0,
        [[v.base, v.follows, v.spread_class] for v in vectors],
        family,
    ]


def _describe(plane: Plane, choice: spread.Choice) -> tuple[list[_Vector], list[Array]]:
    """The index vectors of a plane in the order of the format, and the scales that stay half-precision bits."""
    vectors, halves = [], []
    for scale in (plane.row_scale, plane.col_scale):
        if scale is not None and scale.per_octave == HALF:
            halves.append(scale.index)
        elif scale is not None:
            vectors.append(_vector(scale.index, None))
    if choice.mode in {"rows", "both"}:
        vectors.append(_vector(choice.spread.rows, plane.row_scale))
    if choice.mode in {"cols", "both"}:
        vectors.append(_vector(choice.spread.cols, plane.col_scale))
    return vectors, halves


def _octaves(scale: Scale | None) -> Array | None:
    """The scale in spread steps (rounded down), or None where it is not logarithmic."""
    if scale is None or scale.per_octave == HALF:
        return None
    return scale.index.astype(np.int64) * SPREAD_STEPS // scale.per_octave


def _vector(index: Array, followed: Scale | None) -> _Vector:
    plain = _centred(index, 0)
    octaves = _octaves(followed)
    if octaves is None:
        return plain
    following = _centred(index + octaves, 1)
    return min(plain, following, key=lambda v: spread.index_bits(v.residual))


def _centred(index: Array, follows: int) -> _Vector:
    if np.abs(index).max(initial=0) > MAX_INDEX:
        raise ValueError(f"a scale or spread index leaves ±{MAX_INDEX}")
    base = int(np.median(index)) if index.size else 0
    residual = (index - base).astype(np.int32)
    power = max(float(np.mean(residual.astype(np.float64) ** 2)) if index.size else 0.0, 2.0**-10)
    return _Vector(residual, base, follows, round(0.5 * SPREAD_STEPS * float(np.log2(power))))


def _vector_layout(length: int, spread_class: int, family: int) -> Layout:
    return Layout(
        (length, 1), Spread(np.broadcast_to(np.int32(spread_class), length), np.zeros(1, np.int32)), family=family
    )


def parse(head: dict[str, Any]) -> list[Record]:
    """The records of the planes, checked. Raises ArtifactError."""
    records = [Record.parse(fields) for fields in head["planes"]]
    if sum(r.rows * r.cols for r in records) > MAX_CODES:
        raise ArtifactError("the artifact declares more codes than pgolf reads: it is damaged")
    lanes, families = head["lanes"], head["families"]
    numbers = [*lanes, *families]
    if len(lanes) != 2 or len(families) != sum(len(r.vectors) for r in records) or not all_integers(numbers):
        raise ArtifactError("the side stream does not fit the planes: the artifact is damaged")
    return records


def section_limits(records: Sequence[Record]) -> dict[str, tuple[int, int]]:
    """Section name -> (fewest, most) raw bytes that these planes can need."""
    half = 2 * sum(r.halves() for r in records)
    limits = {"half": (half, half)}
    for name, symbols in (("side", sum(sum(r.lengths()) for r in records)), ("codes", _num_codes(records))):
        limits |= {f"{name}.{part}": (0, most) for part, most in stream.section_limits(symbols).items()}
    return limits


def _num_codes(records: Sequence[Record]) -> int:
    return sum(r.rows * r.cols for r in records)


def all_integers(numbers: Sequence[Any]) -> bool:
    """Whether all are JSON integers of a moderate size (a bool is not one)."""
    return all(type(n) is int and abs(n) < 1 << 40 for n in numbers)


def decode(
    sections: dict[str, bytes], head: dict[str, Any], records: Sequence[Record], device: stream.Device | None = None
) -> list[Plane]:
    """The inverse of `encode`; records: `parse(head)`. Raises ArtifactError; checks sizes before it allocates.

    device: decodes the codes of the planes and holds them; None: numpy.
    """
    lengths = [(length, meta) for r in records for length, meta in zip(r.lengths(), r.vectors, strict=True)]
    layouts = [
        _vector_layout(length, meta[2], family)
        for (length, meta), family in zip(lengths, head["families"], strict=True)
    ]
    side_lanes, lanes = head["lanes"]
    stream.check_plausible(_num_codes(records), len(sections.get("codes.words", b"")) // 2, lanes)
    residuals = iter(stream.decode(sections, side_lanes, layouts, "side"))
    halves = _Cursor(np.frombuffer(sections.get("half", b""), "<u2"))
    described = [_undescribe(record, residuals, halves) for record in records]
    halves.finish()
    layouts = [
        Layout((r.rows, r.cols), d.spread, r.trellis, r.trellis_from, r.family)
        for r, d in zip(records, described, strict=True)
    ]
    codes = stream.decode(sections, lanes, layouts, "codes", device)
    return [
        Plane(c, d.row_scale, d.col_scale, r.trellis, r.trellis_from, d.spread)
        for c, r, d in zip(codes, records, described, strict=True)
    ]


class _Cursor:
    """Hands out an array piece by piece and insists that nothing is missing or left."""

    def __init__(self, data: Array) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> Array:
        piece = self.data[self.at : self.at + count]
        if len(piece) != count:
            raise ArtifactError("half-precision scales are missing: the artifact is damaged")
        self.at += count
        return piece

    def finish(self) -> None:
        if self.at != len(self.data):
            raise ArtifactError("half-precision scales are left over: the artifact is damaged")


@dataclass(frozen=True)
class Record:
    """One plane's entry in the header, in file order; vectors: [base, follows, spread class] of its index vectors."""

    rows: int
    cols: int
    row_scale: int
    col_scale: int
    trellis: int
    trellis_from: int
    mode: int
    overall: int
    vectors: list[list[int]]
    family: int

    @staticmethod
    def parse(fields: Any) -> Record:
        """A record from JSON, every field checked."""
        try:
            record = Record(*fields)
            numbers = [n for f in fields for n in ([m for v in f for m in v] if isinstance(f, list) else [f])]
        except TypeError:
            raise ArtifactError("a plane record has the wrong fields: the artifact is damaged") from None
        good = (
            all_integers(numbers)
            and isinstance(record.vectors, list)
            and all(isinstance(v, list) and len(v) == 3 and v[1] in {0, 1} and abs(v[2]) < 1000 for v in record.vectors)
            and min(record.rows, record.cols) >= 0
            and max(record.rows, record.cols) < MAX_SIDE
            and {record.row_scale, record.col_scale} <= PER_OCTAVES
            and 0 <= record.mode < len(MODES)
            and (record.trellis == 0 or record.trellis in PARITY_CHECKS)
            and (record.overall == 0 or MODES[record.mode] == "one")
            and max(abs(record.trellis_from), abs(record.overall)) <= MAX_INDEX
            and len(record.vectors) == len(record.lengths())
        )
        if not good:
            raise ArtifactError("a plane record is out of range: the artifact is damaged")
        return record

    def halves(self) -> int:
        """How many scales are kept as half-precision bits."""
        return self.rows * (self.row_scale == HALF) + self.cols * (self.col_scale == HALF)

    def lengths(self) -> list[int]:
        """Lengths of the coded index vectors, in file order."""
        return [
            *([self.rows] if self.row_scale > HALF else []),
            *([self.cols] if self.col_scale > HALF else []),
            *([self.rows] if MODES[self.mode] in {"rows", "both"} else []),
            *([self.cols] if MODES[self.mode] in {"cols", "both"} else []),
        ]


@dataclass(frozen=True)
class _Description:
    row_scale: Scale | None
    col_scale: Scale | None
    spread: Spread


def _undescribe(record: Record, residuals: Any, halves: _Cursor) -> _Description:
    metas = iter(record.vectors)

    def index(followed: Scale | None) -> Array:
        base, follows, _ = next(metas)
        values = next(residuals)[:, 0].astype(np.int64) + base
        octaves = _octaves(followed) if follows else 0
        if octaves is None:
            raise ArtifactError("spread classes follow a scale that is not there: the artifact is damaged")
        values = values - octaves
        if np.abs(values).max(initial=0) > MAX_INDEX:
            raise ArtifactError("a scale or spread index is out of range: the artifact is damaged")
        return np.asarray(values, np.int32)

    def scale(per_octave: int, length: int) -> Scale | None:
        if per_octave == NO_SCALE:
            return None
        if per_octave == HALF:
            return Scale(halves.take(length).astype(np.int32), HALF)
        return Scale(index(None), per_octave)

    row_scale, col_scale = scale(record.row_scale, record.rows), scale(record.col_scale, record.cols)
    mode = MODES[record.mode]
    rows = index(row_scale) if mode in {"rows", "both"} else np.broadcast_to(np.int32(record.overall), record.rows)
    cols = index(col_scale) if mode in {"cols", "both"} else np.broadcast_to(np.int32(0), record.cols)
    return _Description(row_scale, col_scale, Spread(rows, cols))
