"""Planes <-> bytes: the codes in one rANS stream, and what describes them (scales, spread classes) in another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.common.threads import on_threads
from pgolf.errors import ArtifactError
from pgolf.packer.coder import stream
from pgolf.packer.coder.classes import choose_spread, index_bits
from pgolf.packer.coder.loops import Loops
from pgolf.packer.coder.stream import Layout
from pgolf.packer.plane import HALF, SPREAD_STEPS, Plane, Scale, Spread

Array = NDArray[Any]

PER_OCTAVES = {HALF, 1, 2, 4, 8, 16, 32, 64}
MAX_CODES = 1 << 33
MAX_SIDE = 1 << 31  # rows or columns of one plane
MAX_EMPTY = 1 << 20  # rows and columns of all planes that have no codes
MAX_INDEX = 1 << 20  # of scales and spread classes
SIDE_LANE_BYTES = 600  # index vectors are few: short lanes cost nothing that counts, and numpy takes fewer steps


@dataclass(frozen=True)
class CodedPlanes:
    """sections: name -> bytes; head: JSON-able; plane_bits, side_bits: of each plane's codes and description;
    ideal_bits: see stream.Coded."""

    sections: dict[str, bytes]
    head: dict[str, Any]
    plane_bits: list[float]
    side_bits: list[float]
    ideal_bits: float


@dataclass(frozen=True)
class _Vector:
    """Index vector = base + residual (− the octaves of the scale it follows, in spread steps). kind: see check_planes.

    spread_class: of the residual, which is None for a constant vector.
    """

    kind: int
    base: int
    residual: Array | None = None
    spread_class: int = 0

    def described(self, families: Iterator[int]) -> list[int]:
        """As the header has it; see check_planes."""
        start = [self.kind, self.base]
        return start if self.residual is None else [*start, self.spread_class, next(families)]


def encode(planes: Sequence[Plane], loops: Loops | None = None) -> CodedPlanes:
    """Code planes. Raises ValueError on codes that break the trellis rule (a quantizer's bug)."""
    choices = on_threads(partial(choose_spread, loops=loops), planes)
    described = [_describe(plane, choice.spread) for plane, choice in zip(planes, choices, strict=True)]
    coded = [[v for v in mine if v is not None and v.residual is not None] for mine in described]
    vectors = [(v.residual, v.spread_class) for mine in coded for v in mine if v.residual is not None]
    side = stream.encode(
        [residual[:, None] for residual, _ in vectors],
        [_vector_layout(len(residual), spread_class) for residual, spread_class in vectors],
        "side",
        SIDE_LANE_BYTES,
        loops,
    )
    layouts = [Layout(c.spread, p.trellis, p.trellis_from) for p, c in zip(planes, choices, strict=True)]
    main = stream.encode([plane.codes for plane in planes], layouts, "codes", loops=loops)
    families = iter(side.families)
    records = [
        [*p.codes.shape, p.trellis, p.trellis_from, family, [v and v.described(families) for v in mine]]
        for p, mine, family in zip(planes, described, main.families, strict=True)
    ]
    bits = iter(side.bits)
    side_bits = [float(sum(next(bits) for _ in mine)) for mine in coded]
    return CodedPlanes(side.sections | main.sections, {"planes": records}, main.bits, side_bits, main.ideal_bits)


def _describe(plane: Plane, chosen: Spread) -> list[_Vector | None]:
    """The index vectors of a plane, in the order of check_planes."""
    row, col = plane.row_scale, plane.col_scale
    scales = [_vector(scale.index, scale.per_octave) if scale else None for scale in (row, col)]
    return [*scales, _class_vector(chosen.rows, row), _class_vector(chosen.cols, col)]


def _vector(index: Array, kind: int) -> _Vector:
    if np.abs(index).max(initial=0) > MAX_INDEX:
        raise ValueError(f"a scale or spread index leaves ±{MAX_INDEX}")
    base = int(np.median(index)) if index.size else 0
    residual = (index - base).astype(np.int32)
    if not residual.any():
        return _Vector(kind, base)
    power = max(float(np.mean(residual.astype(np.float64) ** 2)), 2.0**-10)
    return _Vector(kind, base, residual, round(0.5 * SPREAD_STEPS * float(np.log2(power))))


def _class_vector(index: Array, scale: Scale | None) -> _Vector:
    """Classes as they are or as their sum with the scale's octaves, whichever varies less.

    Where a quantizer chose steps in proportion to the weights' spread, one says nearly everything about the other.
    """
    plain = _vector(index, 0)
    if scale is None or scale.per_octave == HALF or plain.residual is None:
        return plain
    return min(plain, _vector(index + _octaves(scale), 1), key=_index_bits)


def _index_bits(vector: _Vector) -> float:
    return 0.0 if vector.residual is None else index_bits(vector.residual)


def _octaves(scale: Scale) -> Array:
    """The scale in spread steps, rounded down."""
    octaves: Array = scale.index.astype(np.int64) * SPREAD_STEPS // scale.per_octave
    return octaves


def _vector_layout(length: int, spread_class: int, family: int = 0) -> Layout:
    """A vector of indices is coded as a plane too, one column wide, with one class."""
    return Layout(Spread(np.full(length, spread_class), np.zeros(1, np.int32)), 0, 0, family)


def check_planes(records: Sequence[Any]) -> None:
    """Raises ArtifactError unless all are well-formed plane records.

    A record is [rows, cols, trellis, trellis_from, family, vectors]; vectors are of the row scale, column scale, row classes
    and column classes, each [kind, base] if it is constant, else [kind, base, spread class, family], null where there is
    no scale. kind: steps an octave of a scale; of classes, whether they follow the scale.
    """
    if not all(isinstance(record, list) and len(record) == 6 and _fits(*record) for record in records):
        raise ArtifactError("a plane record is malformed or out of range: the artifact is damaged")
    if sum(rows * cols for rows, cols, *_ in records) > MAX_CODES:
        raise ArtifactError("the artifact declares more codes than pgolf reads: it is damaged")
    if sum(rows + cols for rows, cols, *_ in records if not rows * cols) > MAX_EMPTY:
        raise ArtifactError("the artifact declares too many rows without codes: it is damaged")


def _fits(rows: Any, cols: Any, trellis: Any, trellis_from: Any, family: Any, vectors: Any) -> bool:
    return (
        all_integers([rows, cols, trellis, trellis_from, family])
        and min(rows, cols) >= 0
        and max(rows, cols) < MAX_SIDE
        and abs(trellis_from) <= MAX_INDEX
        and isinstance(vectors, list)
        and len(vectors) == 4
        and all(v is None or _vector_fits(v, PER_OCTAVES) for v in vectors[:2])
        and all(_vector_fits(v, {0, bool(scale and scale[0])}) for v, scale in zip(vectors[2:], vectors, strict=False))
    )


def _vector_fits(vector: Any, kinds: set[int]) -> bool:
    if not isinstance(vector, list) or len(vector) not in {2, 4} or not all_integers(vector):
        return False
    return vector[0] in kinds and abs(vector[1]) <= MAX_INDEX and all(abs(n) < 1000 for n in vector[2:])


def all_integers(numbers: Sequence[Any]) -> bool:
    """Whether all are JSON integers of a moderate size (a bool is not one)."""
    return all(type(n) is int and abs(n) < 1 << 40 for n in numbers)


def _coded(records: Sequence[Any]) -> list[tuple[int, Any]]:
    """(length, description) of the vectors that are not constant."""
    return [(n, v) for r in records for n, v in zip(r[:2] * 2, r[5], strict=True) if v and v[2:]]


def section_limits(records: Sequence[Any]) -> dict[str, tuple[int, int]]:
    """Section name -> (fewest, most) raw bytes that these planes can need."""
    coded = _coded(records)
    limits: dict[str, tuple[int, int]] = {}
    for name, symbols, families in (
        ("side", sum(n for n, _ in coded), [v[3] for _, v in coded]),
        ("codes", sum(r[0] * r[1] for r in records), [r[4] for r in records]),
    ):
        most = stream.section_limits(symbols, max(families, default=-1) + 1)
        limits |= {f"{name}.{part}": (0, size) for part, size in most.items()}
    return limits


def read(
    head: dict[str, Any], sections: dict[str, bytes], loops: Loops | None = None, device: stream.Device | None = None
) -> list[Plane]:
    """The inverse of `encode`. Raises ArtifactError; checks sizes before it allocates.

    device: decodes the codes of the planes and holds them; None: numpy.
    """
    records = head["planes"]
    check_amounts(records, sections)
    described = descriptions(records, sections, loops)
    layouts = [Layout(spread, *record[2:5]) for record, (_, _, spread) in zip(records, described, strict=True)]
    codes = stream.decode(sections, "codes", layouts, loops, device)
    return [
        Plane(matrix, row, col, trellis=record[2], trellis_from=record[3], spread=spread)
        for matrix, record, (row, col, spread) in zip(codes, records, described, strict=True)
    ]


def descriptions(records: Sequence[Any], sections: Mapping[str, bytes], loops: Loops | None = None) -> list[Any]:
    """Row scale, column scale and spread of every plane. Raises ArtifactError."""
    residuals = iter(stream.decode(sections, "side", [_vector_layout(n, *v[2:]) for n, v in _coded(records)], loops))
    return [_described(record, residuals) for record in records]


def check_amounts(records: Sequence[Any], sections: Mapping[str, bytes]) -> None:
    """Raises ArtifactError where a stream declares more symbols than it can hold."""
    stream.check_plausible(sections, "codes", sum(r[0] * r[1] for r in records))
    stream.check_plausible(sections, "side", sum(n for n, _ in _coded(records)))


def _described(record: Any, residuals: Iterator[Array]) -> Any:
    """Row scale, column scale and spread of a plane."""
    vectors = record[5]
    index: Any = [
        np.full(n, v[1], np.int32) + (next(residuals)[:, 0] if v[2:] else 0) if v else None
        for n, v in zip(record[:2] * 2, vectors, strict=True)
    ]
    scales = [v and Scale(i, v[0]) for i, v in zip(index[:2], vectors[:2], strict=True)]
    classes = [i - _octaves(s) if v[0] else i for i, v, s in zip(index[2:], vectors[2:], scales, strict=True)]
    check_indices(*index, *classes)
    return *scales, Spread(*classes)


def check_indices(*vectors: Array | None) -> None:
    """Raises ArtifactError where an index is out of range."""
    if any(v is not None and np.abs(v).max(initial=0) > MAX_INDEX for v in vectors):
        raise ArtifactError("a scale or spread index is out of range: the artifact is damaged")
