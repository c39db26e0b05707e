"""A list of integer matrices <-> the byte sections of one rANS stream.

What will surprise you:
* Every code becomes a byte symbol: code + 128, or an escape that keeps its lowest bit (the code is then in a list), and
  of wide classes only the lowest and the top bits (the bits between are put aside).
* Everything is decided per value of rows[i] + cols[j] (strips.Sums): class, table, bits put aside, trellis or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError
from pgolf.packer import aside, families, rans, spread, tables
from pgolf.packer.families import Directory
from pgolf.packer.plane import Spread
from pgolf.packer.strips import Sums, from_strips, lane_bounds, strip_lengths, to_strips
from pgolf.packer.threads import on_threads
from pgolf.packer.trellis import PARITY_CHECKS, next_states, on_path

Array = NDArray[Any]

MAX_LANES = 1 << 16
LANE_BYTES = 6000  # coded bytes a lane: its state and count then cost under 0.1%
LANE_SYMBOLS = 1 << 16  # at most, however few bytes they are: numpy takes a step for each
MAX_LANE_SYMBOLS = 1 << 17  # what the reader allows, so that no file keeps numpy busy for long


@dataclass(frozen=True)
class Layout:
    """What the decoder must know of one matrix before its codes; family is left at 0 for the encoder, who chooses it."""

    shape: tuple[int, int]
    spread: Spread
    trellis: int = 0
    trellis_from: int = 0
    family: int = 0


@dataclass(frozen=True)
class Coded:
    """sections: name -> bytes. lanes: for the header. families: of each matrix. bits: of each matrix's codes.

    ideal_bits: what all codes would take with each table's own exact histogram and an ideal coder, for benchmarks.
    """

    sections: dict[str, bytes]
    lanes: int
    families: list[int]
    bits: list[float]
    ideal_bits: float


@dataclass(frozen=True)
class _Prepared:
    """One matrix in strip order.

    slots: uint8 [N], 2 · class + parity; symbols: uint8 [N]; codes: [N]; wide: int64, where bits are put aside, and
    widths: how many; counts: int64 [SLOTS, 256]; shift: 1 for a trellis, whose lowest bit is in the slot.
    """

    slots: Array
    symbols: Array
    codes: Array
    wide: Array
    widths: Array
    counts: Array
    shift: int


def _prepare(matrix: Array, layout: Layout) -> _Prepared:
    sums = Sums.of(layout.spread)
    classes, put_aside = spread.classes_of(sums.values(), layout.trellis)
    codes, where, shift = to_strips(spread.narrowed(matrix)), sums.where(), int(layout.trellis > 0)
    slots = (2 * classes).astype(np.uint8)[where]
    values = codes
    if layout.trellis:
        on = (sums.values() >= layout.trellis_from)[where]
        if not on_path(codes, on, strip_lengths(layout.shape), layout.trellis):
            raise ValueError("codes do not follow the trellis")
        slots += (codes & 1).astype(np.uint8)
        values = codes >> 1
    wide, widths = _wide(where, put_aside)
    if wide.size:
        values = values.copy()
        values[wide] = aside.shorten(values[wide].astype(np.int32), widths)
    symbols = spread.symbols(values)
    return _Prepared(slots, symbols, codes, wide, widths, spread.count(slots, symbols, families.SLOTS), shift)


def _wide(where: Array, put_aside: Array) -> tuple[Array, Array]:
    """Which entries put bits aside (int64), and how many each (int32)."""
    if not put_aside.any():
        return np.zeros(0, np.int64), np.zeros(0, np.int32)
    wide = np.flatnonzero((put_aside > 0)[where])
    return wide, put_aside[where[wide]].astype(np.int32)


def encode(codes: Sequence[Array], layouts: Sequence[Layout], name: str, lane_bytes: int = LANE_BYTES) -> Coded:
    """Code integer matrices under their layouts. name: prefix of the section names.

    Raises ValueError if trellis codes do not follow the trellis, or trellises differ: a bug of the quantizer.
    """
    if len({layout.trellis for layout in layouts} - {0}) > 1:
        raise ValueError("planes of one artifact have different trellises")
    prepared = on_threads(_prepare, codes, layouts)
    counts, trellis = [p.counts for p in prepared], [bool(layout.trellis) for layout in layouts]
    chosen = families.choose(counts, trellis)
    directory = Directory.of(counts, chosen, trellis)
    totals = directory.totals(counts, chosen)
    entries = on_threads(tables.cheapest, totals, directory.parities())
    freqs = np.stack([tables.frequencies(t) for t in entries]) if entries else np.zeros((0, 256), np.uint16)
    numbers = [directory.numbers(family) for family in chosen]
    done = on_threads(lambda p, n: _finished(p, n, freqs), prepared, numbers)
    bits = [_bits(p, n, freqs) for p, n in zip(done, numbers, strict=True)]
    lanes = _lane_count(sum(bits), sum(len(p.symbols) for p in done), lane_bytes)
    bounds = lane_bounds([layout.shape for layout in layouts], lanes)
    tables_of = _joined(on_threads(lambda p, n: n.astype(np.uint16)[p.slots], done, numbers), np.uint16)
    coded = rans.encode(_joined([p.symbols for p in done], np.uint8), tables_of, bounds, freqs)
    sections = {
        f"{name}.tables": directory.dump() + tables.dump_tables(entries) if entries else b"",
        f"{name}.lanes": _dump_lanes(coded),
        f"{name}.words": coded.words.astype("<u2").tobytes(),
        f"{name}.aside": _dump_aside(done),
        f"{name}.escapes": _joined([p.codes[p.symbols < tables.ESCAPES] for p in done], "<i4").tobytes(),
    }
    ideal = spread.entropy_bits(totals) + float(sum(p.widths.sum(dtype=np.int64) for p in done))
    return Coded({k: v for k, v in sections.items() if v}, lanes, chosen, bits, ideal)


def _joined(parts: Sequence[Array], dtype: Any) -> Array:
    return np.concatenate([*parts, np.zeros(0, dtype)]).astype(dtype, copy=False)


def _finished(p: _Prepared, numbers: Array, freqs: Array) -> _Prepared:
    """With what the tables do not hold turned into escapes; an escape puts no bits aside."""
    used = np.flatnonzero(p.counts.any(1))
    holds = np.ones((families.SLOTS, 256), bool)
    holds[used] = freqs[numbers[used]] > 0
    if (p.counts * ~holds).any():
        p = replace(p, symbols=np.where(holds[p.slots, p.symbols], p.symbols, p.symbols & 1))
    kept = p.symbols[p.wide] >= tables.ESCAPES
    return replace(p, wide=p.wide[kept], widths=p.widths[kept])


def _bits(p: _Prepared, numbers: Array, freqs: Array) -> float:
    used = np.flatnonzero(p.counts.any(1))
    coded = sum(tables.code_bits(p.counts[slot], freqs[numbers[slot]]) for slot in used)
    return coded + float(p.widths.sum(dtype=np.int64))


def _lane_count(bits: float, symbols: int, lane_bytes: int) -> int:
    return min(max(1, int(bits / 8 / lane_bytes), -(-symbols // LANE_SYMBOLS)), MAX_LANES)


def _dump_lanes(coded: rans.Lanes) -> bytes:
    """Lane states' and word counts' bytes, most significant plane first, so that a general codec sees their order."""
    table = np.concatenate([coded.states, coded.counts.astype(np.uint32)]).astype(">u4")
    return table.view(np.uint8).reshape(-1, 4).T.tobytes()


def _dump_aside(prepared: Sequence[_Prepared]) -> bytes:
    middles = [aside.middle(p.codes[p.wide].astype(np.int32) >> p.shift, p.widths) for p in prepared]
    return aside.write(_joined(middles, np.int32), _joined([p.widths for p in prepared], np.int32))


def decode(
    sections: dict[str, bytes], lanes: int, layouts: Sequence[Layout], name: str, device: Device | None = None
) -> list[Any]:
    """The inverse of `encode`: int16 matrices, int32 where they do not fit. Raises ArtifactError.

    device: does the work and holds the matrices; None: numpy.
    """
    mine = {part: sections.get(f"{name}.{part}", b"") for part in section_limits(0)}
    shapes = [layout.shape for layout in layouts]
    check_plausible(sum(rows * cols for rows, cols in shapes), len(mine["words"]) // 2, lanes)
    bounds = lane_bounds(shapes, lanes)
    coded = _parse_lanes(mine["lanes"], mine["words"], len(bounds) - 1)
    directory, rest = Directory.parse(mine["tables"]) if mine["tables"] else (Directory.of([], [], []), b"")
    parsed = tables.parse_tables(rest, directory.tables)
    freqs = np.stack(parsed) if parsed else np.zeros((0, 256), np.uint16)
    sums = [Sums.of(layout.spread) for layout in layouts]
    contexts = rans.Contexts.of(sums, [_lookup(s, y, directory) for s, y in zip(sums, layouts, strict=True)])
    codes = (device.decode if device else rans.decode)(coded, contexts, bounds, freqs, _machine(layouts))
    ends = np.cumsum([0, *(rows * cols for rows, cols in shapes)])
    parts = [codes[a:b] for a, b in pairwise(ends)]
    escaped = on_threads(device.escaped if device else _escaped, parts)
    patches = _patches(escaped, sums, layouts, mine)
    return on_threads(device.restored if device else _restored, parts, layouts, patches)


def section_limits(symbols: int) -> dict[str, int]:
    """Part of a stream's section names -> the most bytes that so many symbols can need."""
    tables_at_most = 1 + 255 * families.BITMAP_BYTES + families.MAX_TABLES * tables.MAX_BYTES
    return {
        "tables": tables_at_most if symbols else 0,
        "lanes": 8 * min(MAX_LANES, symbols),
        "words": 2 * symbols,
        "aside": (aside.MAX_WIDTH * symbols + 7) // 8,
        "escapes": 4 * symbols,
    }


def check_plausible(symbols: int, words: int, lanes: int) -> None:
    """Refuse, before anything is allocated, more symbols than the coder can have put into its words."""
    if not 1 <= lanes <= MAX_LANES:
        raise ArtifactError(f"{lanes} coder lanes are outside 1..{MAX_LANES}: the artifact is damaged")
    if symbols > min(rans.SYMBOLS_A_WORD * (words + lanes), MAX_LANE_SYMBOLS * lanes):
        raise ArtifactError(f"{symbols} codes cannot be in {2 * words} coded bytes: the artifact is damaged")


def _lookup(sums: Sums, layout: Layout, directory: Directory) -> Array:
    """uint16 [sums.size]: the coder's context for each value of rows[i] + cols[j]."""
    numbers = directory.numbers(layout.family)
    classes, _ = spread.classes_of(sums.values(), layout.trellis)
    contexts = numbers[2 * classes]
    missing = contexts == families.NO_TABLE
    if layout.trellis:
        missing |= numbers[2 * classes + 1] == families.NO_TABLE
        contexts = contexts | np.where(sums.values() >= layout.trellis_from, rans.ON_TRELLIS | rans.DOUBLE, rans.DOUBLE)
    if missing.any() and missing[sums.where()].any():
        raise ArtifactError("a spread class has no probability table: the artifact is damaged")
    lookup: Array = contexts.astype(np.uint16)
    return lookup


def _machine(layouts: Sequence[Layout]) -> Array:
    states = {layout.trellis for layout in layouts} - {0}
    if not states:
        return np.zeros((1, 2), np.uint8)
    if len(states) > 1 or not states <= PARITY_CHECKS.keys():
        raise ArtifactError(f"no single known trellis among {sorted(states)} states: the artifact is damaged")
    return next_states(states.pop()).astype(np.uint8)


def _parse_lanes(table: bytes, words: bytes, lanes: int) -> rans.Lanes:
    if len(table) != 8 * lanes or len(words) % 2:
        raise ArtifactError("the coder's lane table does not fit its lanes: the artifact is damaged")
    numbers = np.ascontiguousarray(np.frombuffer(table, np.uint8).reshape(4, -1).T).view(">u4").ravel()
    states, counts = numbers[:lanes].astype(np.uint32), numbers[lanes:].astype(np.int64)
    if (states < rans.LOW).any():
        raise ArtifactError("a coder state is out of range: the artifact is damaged")
    return rans.Lanes(states, counts, np.frombuffer(words, "<u2").astype(np.uint16, copy=False))


@dataclass(frozen=True)
class Patch:
    """What changes the codes of one matrix that came from the coder, in strip order.

    escaped: int64 [E], their codes are `escapes` int32 [E]; wide: int64 [W], `widths` and `middles` int32 [W] were put aside.
    """

    escaped: Array
    escapes: Array
    wide: Array
    widths: Array
    middles: Array


class Device(Protocol):
    """What decodes in numpy's stead and keeps the codes where they are: arrays of its own kind."""

    def decode(self, lanes: rans.Lanes, contexts: rans.Contexts, bounds: Array, freqs: Array, machine: Array) -> Any:
        """As `rans.decode`."""

    def escaped(self, part: Any) -> Array:
        """int64, ascending: which codes of a matrix are rans.ESCAPED."""

    def restored(self, part: Any, layout: Layout, patch: Patch) -> Any:
        """The matrix that a part of the stream and its patch make."""

    def checksum(self, matrices: Sequence[Any]) -> int:
        """As `artifact.checksum`."""


def _escaped(part: Array) -> Array:
    return np.flatnonzero(part == rans.ESCAPED)


def _patches(
    escaped: Sequence[Array], sums: Sequence[Sums], layouts: Sequence[Layout], mine: dict[str, bytes]
) -> list[Patch]:
    """From the escape list and the bits put aside."""
    escapes = _split(np.frombuffer(mine["escapes"], "<i4") if len(mine["escapes"]) % 4 == 0 else None, escaped)
    wide = on_threads(_wide_kept, sums, layouts, escaped)
    middles = _split(aside.read(mine["aside"], _joined([w for _, w in wide], np.int32)), [w for _, w in wide])
    return [Patch(e, v, *w, m) for e, v, w, m in zip(escaped, escapes, wide, middles, strict=True)]


def _split(values: Array | None, like: Sequence[Array]) -> list[Array]:
    """`values` cut into pieces as long as those of `like`."""
    ends = np.cumsum([0, *(len(piece) for piece in like)])
    if values is None or len(values) != ends[-1]:
        raise ArtifactError("the escape list does not fit the codes: the artifact is damaged")
    return [values[a:b] for a, b in pairwise(ends)]


def _wide_kept(sums: Sums, layout: Layout, escaped: Array) -> tuple[Array, Array]:
    _, put_aside = spread.classes_of(sums.values(), layout.trellis)
    if not put_aside.any():
        return _wide(np.zeros(0, np.uint8), put_aside)
    wide, widths = _wide(sums.where(), put_aside)
    kept = ~np.isin(wide, escaped, assume_unique=True)
    return wide[kept], widths[kept]


def _restored(part: Array, layout: Layout, patch: Patch) -> Array:
    if len(patch.escaped) or len(patch.wide):
        part = part.astype(np.int32)
        part[patch.escaped] = patch.escapes
        part[patch.wide] = lengthened(part[patch.wide], layout, patch.middles, patch.widths)
    return spread.narrowed(from_strips(part, layout.shape))


def lengthened(short: Any, layout: Layout, middles: Any, widths: Any) -> Any:
    """Wide codes from what the coder gave and the bits put aside: int32 arrays of any kind."""
    shift = int(layout.trellis > 0)
    return aside.lengthen(short >> shift, middles, widths) << shift | (short & shift)
