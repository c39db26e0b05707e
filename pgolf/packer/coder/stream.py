"""A list of integer matrices <-> the byte sections of one rANS stream.

Every code becomes a byte symbol: code + 128, or an escape that keeps its lowest bit (the code is then in a list), and of
wide classes only the lowest and the top bits (the bits between are put aside). Everything is decided per value of
rows[i] + cols[j] (strips.ClassSums): class, table, bits put aside, trellis or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pgolf.common.threads import on_threads
from pgolf.errors import ArtifactError
from pgolf.packer.coder import aside, classes, families, rans, tables
from pgolf.packer.coder.layout import ON_TRELLIS, CodedLanes
from pgolf.packer.coder.loops import Loops
from pgolf.packer.coder.strips import (
    ClassSums,
    class_sums,
    from_strips,
    lane_bounds,
    strip_lengths,
    strip_starts,
    to_strips,
)
from pgolf.packer.coder.trellis import PARITY_CHECKS, STRIP, on_path, transitions
from pgolf.packer.plane import Plane, Spread

Array = NDArray[Any]

MAX_LANES = 1 << 16
LANE_BYTES = 6000  # coded bytes a lane: its state and count then cost under 0.1%
LANE_SYMBOLS = 1 << 16  # at most, however few bytes they are: numpy takes a step for each
_PIECE = 1 << 18  # codes at a time, where temporaries would be large
MAX_LANE_SYMBOLS = 1 << 17  # what the reader allows: no small file is a large model or keeps numpy busy for long


@dataclass(frozen=True)
class Layout:
    """What the decoder must know of one matrix before its codes; family is left at 0 for the encoder, who chooses it."""

    spread: Spread
    trellis: int = 0
    trellis_from: int = 0
    family: int = 0


@dataclass(frozen=True)
class Coded:
    """sections: name -> bytes. families: of each matrix. bits: of each matrix's codes.

    ideal_bits: what all codes would take with each table's own exact histogram and an ideal coder, for benchmarks.
    """

    sections: dict[str, bytes]
    families: list[int]
    bits: list[float]
    ideal_bits: float


@dataclass(frozen=True)
class _Prepared:
    """One matrix in strip order.

    slots: uint8 [N], 2 · class + parity; symbols: uint8 [N]; both are parts of arrays for all matrices, and change in place.
    wide: int64, where bits are put aside; widths: how many; middles: the bits; counts: int64 [SLOTS, 256].
    """

    slots: Array
    symbols: Array
    wide: Array
    widths: Array
    middles: Array
    counts: Array


def _prepare(matrix: Array, layout: Layout, slots: Array, symbols: Array, loops: Loops | None) -> _Prepared:
    """Fills slots and symbols, one row of strips after another: temporaries are as large as that."""
    sums, codes, states = class_sums(layout.spread), classes.narrowed(matrix), layout.trellis
    class_of, put_aside = classes.classes_of(sums.values, states)
    table, on = (2 * class_of).astype(np.uint8), sums.values >= layout.trellis_from
    counts, found = np.zeros((families.SLOTS, 256), np.int64), list[tuple[Array, Array, Array]]()
    ends = np.cumsum([0, *(codes[top : top + STRIP].size for top in range(0, len(codes), STRIP))])
    for top, start, stop in zip(range(0, len(codes), STRIP), ends[:-1], ends[1:], strict=True):
        block = codes[top : top + STRIP]
        some = ClassSums(sums.values, sums.rows[top : top + STRIP], sums.cols)
        part, where = to_strips(block), some.where()
        table.take(where, out=slots[start:stop], mode="clip")
        if states:
            if not on_path(part, on[where], strip_lengths(block.shape), states):
                raise ValueError("codes do not follow the trellis")
            slots[start:stop] += (part & 1).astype(np.uint8)
        wide, widths = _wide(where, put_aside)
        middles = aside.middle(part[wide].astype(np.int32), widths, 1 + (states > 0))
        if wide.size:
            part[wide] = aside.shorten(part[wide].astype(np.int32), widths, 1 + (states > 0))
        symbols[start:stop] = classes.symbols(part >> (states > 0))
        counts += (loops.count if loops else classes.count)(slots[start:stop], symbols[start:stop], families.SLOTS)
        found.append((wide + start, widths, middles))
    wide, widths = _joined([w for w, _, _ in found], np.int64), _joined([n for _, n, _ in found], np.int32)
    return _Prepared(slots, symbols, wide, widths, _joined([m for _, _, m in found], np.int32), counts)


def _wide(where: Array, put_aside: Array) -> tuple[Array, Array]:
    """Which entries put bits aside (int64), and how many each (int32)."""
    if not put_aside.any():
        return np.zeros(0, np.int64), np.zeros(0, np.int32)
    wide = np.flatnonzero((put_aside > 0)[where])
    return wide, put_aside[where[wide]].astype(np.int32)


def encode(
    codes: Sequence[Array],
    layouts: Sequence[Layout],
    name: str,
    lane_bytes: int = LANE_BYTES,
    loops: Loops | None = None,
) -> Coded:
    """Code integer matrices under their layouts. name: prefix of the section names.

    Raises ValueError if trellis codes do not follow the trellis, or trellises differ: a bug of the quantizer.
    """
    if len({layout.trellis for layout in layouts} - {0}) > 1:
        raise ValueError("planes of one artifact have different trellises")
    ends = np.cumsum([matrix.size for matrix in codes], dtype=np.int64)
    slots, symbols = np.empty((2, ends[-1] if codes else 0), np.uint8)
    prepared = on_threads(
        partial(_prepare, loops=loops), codes, layouts, np.split(slots, ends)[:-1], np.split(symbols, ends)[:-1]
    )
    counts, trellis = [p.counts for p in prepared], [bool(layout.trellis) for layout in layouts]
    chosen = families.choose_families(counts, trellis)
    used = families.directory(counts, chosen)
    totals = families.totals(used, counts, chosen)
    entries = on_threads(tables.cheapest, totals, families.parities(used))
    freqs = np.stack([tables.frequencies(t) for t in entries]) if entries else np.zeros((0, 256), np.int64)
    numbers = families.table_numbers(used)[chosen]
    done = on_threads(lambda p, n: _finished(p, n, freqs), prepared, numbers)
    bits = [_bits(p, n, freqs) for p, n in zip(done, numbers, strict=True)]
    bounds = lane_bounds(
        strip_starts(layout.spread.shape for layout in layouts), _lane_count(sum(bits), len(symbols), lane_bytes)
    )
    coded = rans.encode(symbols, slots, bounds, freqs, loops)  # slots have become numbers of tables
    sections = {
        f"{name}.tables": families.dump(used) + tables.dump_tables(entries),
        f"{name}.lanes": np.concatenate([coded.states, coded.counts]).astype("<u4").tobytes(),
        f"{name}.words": coded.words.astype("<u2", copy=False).tobytes(),
        f"{name}.aside": aside.write(
            _joined([p.middles for p in done], np.int32), _joined([p.widths for p in done], np.int32)
        ),
        f"{name}.escapes": _joined(on_threads(_escapes, codes, done), "<i4").tobytes(),
    }
    ideal = classes.entropy_bits(totals) + float(sum(p.widths.sum(dtype=np.int64) for p in done))
    return Coded({k: v for k, v in sections.items() if v}, chosen, bits, ideal)


def _joined(parts: Sequence[Array], dtype: Any) -> Array:
    return np.concatenate([*parts, np.zeros(0, dtype)]).astype(dtype, copy=False)


def _finished(p: _Prepared, numbers: Array, freqs: Array) -> _Prepared:
    """With slots turned into tables' numbers, and what the tables do not hold into escapes, which put no bits aside."""
    of_slot = np.zeros(256, np.uint8)
    of_slot[: families.SLOTS] = numbers
    p.slots[:] = np.frombuffer(p.slots.tobytes().translate(of_slot.tobytes()), np.uint8)
    used = np.flatnonzero(p.counts.any(1))
    if (p.counts[used] * (freqs[numbers[used]] == 0)).any():
        for at in range(0, p.slots.size, _PIECE):
            symbols = p.symbols[at : at + _PIECE]
            symbols[freqs[p.slots[at : at + _PIECE], symbols] == 0] &= 1
    kept = p.symbols[p.wide] >= tables.ESCAPES
    return replace(p, wide=p.wide[kept], widths=p.widths[kept], middles=p.middles[kept])


def _escapes(matrix: Array, p: _Prepared) -> Array:
    """The codes of the escapes, in strip order."""
    escaped = np.flatnonzero(p.symbols < tables.ESCAPES)
    return to_strips(matrix)[escaped] if escaped.size else np.zeros(0, matrix.dtype)


def _bits(p: _Prepared, numbers: Array, freqs: Array) -> float:
    used = np.flatnonzero(p.counts.any(1))
    coded = sum(tables.code_bits(p.counts[slot], freqs[numbers[slot]]) for slot in used)
    return coded + float(p.widths.sum(dtype=np.int64))


def _lane_count(bits: float, symbols: int, lane_bytes: int) -> int:
    return min(max(int(bits / 8 / lane_bytes), -(-symbols // LANE_SYMBOLS)), MAX_LANES)


class Device(Protocol):
    """What decodes in numpy's stead and keeps the codes where it is, in arrays of its own kind."""

    def decode(self, coded: CodedLanes, loops: Loops | None) -> Any:
        """As `rans.decode`; the loops are of no use but to a processor."""

    def restored(
        self, codes: Any, sums: Sequence[ClassSums], layouts: Sequence[Layout], middles: bytes, escapes: Array
    ) -> list[Any]:
        """As `restored`, of what `decode` gave."""

    def from_strips(self, part: Any, shape: tuple[int, int]) -> Any:
        """As `strips.from_strips`."""

    def checksum(self, planes: Sequence[Plane]) -> int:
        """As `artifact.checksum`."""


def decode(
    sections: Mapping[str, bytes],
    name: str,
    layouts: Sequence[Layout],
    loops: Loops | None = None,
    device: Device | None = None,
) -> list[Any]:
    """The inverse of `encode`: int16 matrices, int32 where a code needed more than a symbol. Raises ArtifactError.

    device: does the work and holds the matrices; None: numpy.
    """
    coded = coded_lanes(sections, name, layouts)
    codes = (device.decode if device else rans.decode)(coded, loops)
    escapes, middles = (sections.get(f"{name}.{part}", b"") for part in ("escapes", "aside"))
    held = np.frombuffer(escapes, "<i4")
    return (device.restored if device else restored)(codes, coded.sums, layouts, middles, held)


def coded_lanes(sections: Mapping[str, bytes], name: str, layouts: Sequence[Layout]) -> CodedLanes:
    """What the coder is given of a stream. Raises ArtifactError."""
    check_layouts(layouts)
    table, lanes, words = (sections.get(f"{name}.{part}", b"") for part in ("tables", "lanes", "words"))
    bitmaps = families.BITMAP_BYTES * (1 + max([-1, *(y.family for y in layouts)]))
    used = families.parse(table[:bitmaps])
    sums, starts = [class_sums(y.spread) for y in layouts], strip_starts(y.spread.shape for y in layouts)
    states, counts = np.frombuffer(lanes, "<u4").reshape(2, -1)
    return CodedLanes(
        states,
        counts,
        np.frombuffer(words, "<u2"),
        sums,
        [_lookup(s, y, used) for s, y in zip(sums, layouts, strict=True)],
        starts,
        tables.parse_tables(table[bitmaps:], used.sum()),
        families.table_codes(used),
        transitions(max([0, *(y.trellis for y in layouts)])),
        lane_bounds(starts, len(counts)),
    )


def section_limits(symbols: int, count: int) -> dict[str, int]:
    """Part of a stream's section names -> the most bytes that so many symbols in so many families can need."""
    return {
        "tables": count * families.BITMAP_BYTES + families.MAX_TABLES * tables.MAX_BYTES,
        "lanes": 8 * min(MAX_LANES, symbols),
        "words": 2 * symbols,
        "aside": (aside.MAX_WIDTH * symbols + 7) // 8,
        "escapes": 4 * symbols,
    }


def check_plausible(sections: Mapping[str, bytes], name: str, symbols: int) -> None:
    """Refuse, before anything is allocated, more symbols than the lanes may have."""
    lanes = len(sections.get(f"{name}.lanes", b"")) // 8
    if symbols > MAX_LANE_SYMBOLS * lanes:
        raise ArtifactError(f"{symbols} codes cannot be in {lanes} lanes: the artifact is damaged")


def check_layouts(layouts: Sequence[Layout]) -> None:
    """Raises ArtifactError where trellises differ or a family serves the wrong kind."""
    states = {y.trellis for y in layouts} - {0}
    if len(states) > 1 or not states <= PARITY_CHECKS.keys():
        raise ArtifactError(f"no single known trellis among {sorted(states)} states: the artifact is damaged")
    if any(not 0 <= y.family < families.MAX_FAMILIES or y.family & 1 != (y.trellis > 0) for y in layouts):
        raise ArtifactError("a family of tables is of another kind than its matrix: the artifact is damaged")


def _lookup(sums: ClassSums, layout: Layout, used: Array) -> Array:
    """uint16 [len(sums.values)]: the coder's context for each value of rows[i] + cols[j]."""
    class_of, _ = classes.classes_of(sums.values, layout.trellis)
    check_tables(used[layout.family][2 * class_of], sums)
    tables_of = families.table_numbers(used)[layout.family][2 * class_of]
    lookup: Array = tables_of | ON_TRELLIS * (sums.values >= layout.trellis_from) * (layout.trellis > 0)
    return lookup.astype(np.uint16)


def check_tables(held: Array, sums: ClassSums) -> None:
    """Raises ArtifactError where an entry has no table. held: whether there is one for each of the sums."""
    if not held.all() and not held[np.add.outer(np.unique(sums.rows), np.unique(sums.cols))].all():
        raise ArtifactError("a spread class has no probability table: the artifact is damaged")


def restored(
    codes: Any,
    sums: Sequence[ClassSums],
    layouts: Sequence[Layout],
    middles: bytes,
    escapes: Array,
    device: Device | None = None,
) -> list[Array]:
    """Matrices from what the coder decoded, the bits put aside and the escape list. Raises ArtifactError.

    device: lays out the strips; None: numpy.
    """
    parts = []
    bit = 0
    for s, layout in zip(sums, layouts, strict=True):
        rows, cols = layout.spread.shape
        part, codes = codes[: rows * cols], codes[rows * cols :]
        _, put_aside = classes.classes_of(s.values, layout.trellis)
        escaped = np.flatnonzero(part == tables.ESCAPED)
        if put_aside.any() or escaped.size:
            widths = put_aside[s.where()]
            widths[escaped] = 0
            wide = np.flatnonzero(widths)
            widths = widths[wide].astype(np.int32)
            part = part.astype(np.int32)
            part[wide] = aside.lengthen(part[wide], aside.read(middles, bit, widths), widths, 1 + (layout.trellis > 0))
            part[escaped] = escapes[: escaped.size]
            bit += widths.sum()
            escapes = escapes[escaped.size :]
        parts.append((device.from_strips if device else from_strips)(part, layout.spread.shape))
    if len(escapes):
        raise ArtifactError("escapes are left over: the artifact is damaged")
    aside.check_all_read(middles, bit)
    return parts
