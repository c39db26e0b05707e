"""A list of integer matrices <-> the byte sections of one rANS stream.

What will surprise you:
* Matrices are cut into strips: one column by at most STRIP rows. Strips follow each other matrix by matrix, and a lane
  of the coder is a run of whole strips, so that the trellis state never crosses lanes.
* Tables belong to a family. Families 0 (scalar) and 1 (trellis) are shared by all matrices; a matrix whose histograms
  look different enough to pay for its own tables gets a private one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError
from pgolf.packer import rans, spread, tables
from pgolf.packer.plane import Spread
from pgolf.packer.trellis import PARITY_CHECKS, STRIP, next_states, on_path

Array = NDArray[Any]

LANE_BYTES = 6000  # coded bytes a lane: its state and count then cost under 0.1%
MAX_LANES = 4096
MAX_SLOTS = 510  # tables that a context's nine bits can name, less the parity neighbour
PARAMETRIC_UP_TO = 1 << 18  # symbols of a table; beyond, an explicit one always pays and the fit would only cost time
SHARED_SCALAR, SHARED_TRELLIS = 0, 1


@dataclass(frozen=True)
class Layout:
    """What the decoder must know of one matrix before its codes: shape, classes, trellis threshold, table family."""

    shape: tuple[int, int]
    spread: Spread
    trellis: int
    trellis_from: int
    family: int


@dataclass(frozen=True)
class Coded:
    """sections: name -> bytes. head: integers for the header. families: of each matrix. bits: of each matrix's codes."""

    sections: dict[str, bytes]
    head: dict[str, Any]
    families: list[int]
    bits: list[float]


def to_strips(matrix: Array) -> Array:
    """[R, C] -> [R · C], strip after strip."""
    full = len(matrix) // STRIP * STRIP
    blocks = matrix[:full].reshape(full // STRIP, STRIP, matrix.shape[1]).swapaxes(1, 2).ravel()
    return np.concatenate([blocks, matrix[full:].T.ravel()]) if full < len(matrix) else blocks


def from_strips(flat: Array, shape: tuple[int, int]) -> Array:
    """The inverse of `to_strips`."""
    rows, cols = shape
    full = rows // STRIP * STRIP
    out = np.empty(shape, flat.dtype)
    out[:full].reshape(full // STRIP, STRIP, cols)[:] = (
        flat[: full * cols].reshape(full // STRIP, cols, STRIP).swapaxes(1, 2)
    )
    out[full:] = flat[full * cols :].reshape(cols, rows - full).T
    return out


@dataclass(frozen=True)
class _Classes:
    """Of one matrix, in strip order: where each entry's rows[i] + cols[j] stands in the short tables over the sums.

    table: int16, class of the probability table; aside: int8, bits put aside; on: bool, entry is on the trellis.
    """

    where: Array
    table: Array
    aside: Array
    on: Array

    @staticmethod
    def of(layout: Layout) -> _Classes:
        """The classes of a layout."""
        rows, cols = layout.spread.rows.astype(np.int64), layout.spread.cols.astype(np.int64)
        if not rows.size or not cols.size:
            empty = np.zeros(0, np.int64)
            return _Classes(empty, *spread.classes_of(empty, 0), empty > 0)
        low = (int(rows.min()), int(cols.min()))
        sums = np.arange(sum(low), int(rows.max()) + int(cols.max()) + 1)
        narrow = np.uint8 if len(sums) <= 256 else np.uint16
        if len(sums) > 1 << 16:
            raise ArtifactError(
                "spread classes of one matrix differ by more than any codes can: the artifact is damaged"
            )
        r, c = (rows - low[0]).astype(narrow), (cols - low[1]).astype(narrow)
        where = np.concatenate([(c[:, None] + r[None, at : at + STRIP]).ravel() for at in range(0, len(r), STRIP)])
        table, aside = spread.classes_of(sums, layout.trellis)
        return _Classes(where, table, aside, sums >= layout.trellis_from)

    def put_aside(self) -> Array | None:
        """Bits put aside of every entry, None where there are none at all."""
        return self.aside[self.where] if self.aside.any() else None


def _strip_lengths(shape: tuple[int, int]) -> Array:
    rows, cols = shape
    heights = [STRIP] * (rows // STRIP) + ([rows % STRIP] if rows % STRIP else [])
    return np.repeat(np.array(heights, np.int64), cols)


def _lane_bounds(shapes: Sequence[tuple[int, int]], lanes: int) -> tuple[Array, Array]:
    """(strip starts, lane bounds): lane l starts at the first strip that starts at or after l/lanes of all symbols."""
    lengths = np.concatenate([_strip_lengths(shape) for shape in shapes] or [np.zeros(0, np.int64)])
    starts = np.concatenate([[0], np.cumsum(lengths[lengths > 0])])
    targets = np.arange(lanes + 1) * int(starts[-1]) // lanes
    return starts[:-1], np.unique(starts[np.searchsorted(starts, targets)])


@dataclass(frozen=True)
class _Prepared:
    """One matrix in strip order. slots: 2 · class + parity; symbols: bytes; aside: bits put aside or None; codes."""

    slots: Array
    symbols: Array
    aside: Array | None
    codes: Array
    trellis: bool

    def counts(self) -> Array:
        """int64 [2 · CLASSES, 256]: how often each symbol stands in each slot."""
        index = self.slots.astype(np.int64) << 8 | self.symbols
        return np.bincount(index, minlength=512 * spread.CLASSES).reshape(-1, 256)

    def finished(self, counts: Array, tables_of: Array, holds: Array) -> _Prepared:
        """With table numbers for slots, and what those tables do not hold turned into escapes."""
        slots = tables_of.astype(np.uint16)[self.slots]
        symbols, aside = self.symbols, self.aside
        used = np.flatnonzero(counts.any(1))
        if (counts[used] * ~holds[tables_of[used]]).any():
            symbols = np.where(holds[slots, symbols], symbols, symbols & 1)
        if aside is not None:
            aside = np.where(symbols < tables.ESCAPES, np.int8(0), aside)
        return replace(self, slots=slots, symbols=symbols, aside=aside)


def _prepare(matrix: Array, layout: Layout) -> _Prepared:
    classes = _Classes.of(layout)
    codes = to_strips(matrix)
    slots = (2 * classes.table)[classes.where]
    if layout.trellis:
        if not on_path(codes, classes.on[classes.where], _strip_lengths(layout.shape), layout.trellis):
            raise ValueError("codes do not follow the trellis")
        slots += (codes & 1).astype(np.int16)
    aside = classes.put_aside()
    return _Prepared(
        slots, spread.symbols(codes >> 1 if layout.trellis else codes, aside), aside, codes, bool(layout.trellis)
    )


def encode(codes: Sequence[Array], layouts: Sequence[Layout], name: str) -> Coded:
    """Code int32 matrices under their layouts (family is chosen here). name: prefix of the section names.

    Raises ValueError if trellis codes do not follow the trellis: a bug of the quantizer.
    """
    prepared = [_prepare(c, layout) for c, layout in zip(codes, layouts, strict=True)]
    counts = [p.counts() for p in prepared]
    families = _choose_families(counts, [layout.trellis for layout in layouts])
    slot_base, used = _number_slots(counts, families, [bool(layout.trellis) for layout in layouts])
    totals = np.zeros((sum(int(u.sum()) for u in used), 256), np.int64)
    for count, family in zip(counts, families, strict=True):
        np.add.at(totals, slot_base[family][used[family]], count[used[family]])
    parities = np.concatenate([np.flatnonzero(u) & 1 for u in used]) if used else np.zeros(0, np.int64)
    chosen = [_cheapest_table(c, int(parity)) for c, parity in zip(totals, parities, strict=True)]
    freqs = np.stack([_frequencies(t) for t in chosen]) if chosen else np.zeros((0, 256), np.uint16)
    bits = [
        sum(tables.code_bits(count[s], freqs[slot_base[family][s]]) for s in np.flatnonzero(count.any(1)))
        + (float(p.aside.sum(dtype=np.int64)) if p.aside is not None else 0.0)
        for count, family, p in zip(counts, families, prepared, strict=True)
    ]
    lanes = int(np.clip(sum(bits) / 8 / LANE_BYTES, 1, MAX_LANES))
    _, bounds = _lane_bounds([layout.shape for layout in layouts], lanes)
    done = [p.finished(n, slot_base[f], freqs > 0) for p, n, f in zip(prepared, counts, families, strict=True)]
    symbols = _joined([p.symbols for p in done], np.uint8)
    coded = rans.encode(symbols, _joined([p.slots for p in done], np.uint16), bounds, freqs)
    escapes = _joined([p.codes[p.symbols < tables.ESCAPES] for p in done], np.int32)
    sections = {
        f"{name}.tables": tables.dump_tables(chosen),
        f"{name}.lanes": _dump_lanes(coded),
        f"{name}.words": coded.words.astype("<u2").tobytes(),
        f"{name}.aside": _dump_aside(done),
        f"{name}.escapes": escapes.astype("<i4").tobytes(),
    }
    head = {"lanes": lanes, "used": [_bitmap(u) for u in used]}
    return Coded({k: v for k, v in sections.items() if v}, head, families, bits)


def _joined(parts: list[Array], dtype: Any) -> Array:
    return np.concatenate([*parts, np.zeros(0, dtype)]).astype(dtype, copy=False)


def _choose_families(counts: list[Array], trellis: list[int]) -> list[int]:
    """A private family where its own histograms save more than its tables cost; the largest savings first."""
    families = [SHARED_TRELLIS if t else SHARED_SCALAR for t in trellis]
    room = MAX_SLOTS - 4 * spread.CLASSES
    gains = []
    for family in (SHARED_SCALAR, SHARED_TRELLIS):
        members = [i for i, f in enumerate(families) if f == family]
        shared = np.sum([counts[i] for i in members], axis=0)
        for i in members if len(members) > 1 else []:
            n = counts[i]
            cross = float((n * (np.log2(shared.sum(1, keepdims=True) + 1) - np.log2(np.maximum(shared, 1)))).sum())
            own = spread.entropy_bits(n) + 10.0 * float((n > 0).sum())
            gains.append((cross - own, i))
    for gain, i in sorted(gains, reverse=True):
        slots = int(counts[i].any(1).sum())
        if gain > 0 and slots <= room:
            families[i] = 2 + sum(f >= 2 for f in families)
            room -= slots
    return families


def _number_slots(counts: list[Array], families: list[int], trellis: list[bool]) -> tuple[list[Array], list[Array]]:
    """Per family: table number of each slot (int64 [2 · CLASSES]) and which slots are in use (bool).

    In a trellis family every class in use has both parities, because the decoder adds the parity to the table number.
    """
    numbers, used, first = [], [], 0
    for family in range(max(families, default=-1) + 1):
        mask = np.zeros(2 * spread.CLASSES, bool)
        for count, f, paired in zip(counts, families, trellis, strict=True):
            if f == family:
                mask |= count.any(1)
                mask = np.repeat(mask[0::2] | mask[1::2], 2) if paired else mask
        numbers.append(first + np.cumsum(mask) - 1)
        used.append(mask)
        first += int(mask.sum())
    return numbers, used


def _cheapest_table(counts: Array, parity: int) -> tuple[int, int, int, int] | tables.Frequencies:
    explicit = tables.normalise_counts(counts)
    if counts.sum() > PARAMETRIC_UP_TO:
        return explicit
    bits = tables.code_bits(counts, explicit) + 8 * (3 + 1.4 * float((explicit > 0).sum()))
    parameters = tables.fit_parametric(counts, parity)
    if tables.code_bits(counts, tables.parametric(*parameters, parity)) + 32 < bits:
        return (*parameters, parity)
    return explicit


def _frequencies(table: tuple[int, int, int, int] | tables.Frequencies) -> tables.Frequencies:
    return tables.parametric(*table) if isinstance(table, tuple) else table


def _bitmap(mask: Array) -> int:
    return int("".join("1" if bit else "0" for bit in mask[::-1]) or "0", 2)


def _dump_lanes(coded: rans.Lanes) -> bytes:
    """Lane states' and word counts' bytes, most significant plane first, so that a general codec sees their order."""
    table = np.concatenate([coded.states, coded.counts.astype(np.uint32)]).astype(">u4")
    return table.view(np.uint8).reshape(-1, 4).T.tobytes()


def _dump_aside(prepared: list[_Prepared]) -> bytes:
    """The bits put aside, matrix by matrix: for each width, ascending, those bits of its entries in strip order."""
    bits = []
    for p in prepared:
        for width in np.unique(p.aside) if p.aside is not None else ():
            middle = p.codes[p.aside == width] >> (2 if p.trellis else 1)
            bits.append((middle[:, None] >> np.arange(width, dtype=np.int32) & 1).astype(np.uint8).ravel())
    return np.packbits(np.concatenate(bits)).tobytes() if bits else b""


def decode(sections: dict[str, bytes], head: dict[str, Any], layouts: Sequence[Layout], name: str) -> list[Array]:
    """The inverse of `encode`: int32 matrices. Raises ArtifactError on anything inconsistent."""
    shapes = [layout.shape for layout in layouts]
    lanes = head["lanes"]
    if not 1 <= lanes <= MAX_LANES:
        raise ArtifactError(f"{lanes} coder lanes are outside 1..{MAX_LANES}: the artifact is damaged")
    strips, bounds = _lane_bounds(shapes, lanes)
    used = [_parse_bitmap(u) for u in head["used"]]
    freqs_list = tables.parse_tables(sections.get(f"{name}.tables", b""), sum(int(u.sum()) for u in used))
    freqs = np.stack(freqs_list) if freqs_list else np.zeros((0, 256), np.uint16)
    classes = [_Classes.of(layout) for layout in layouts]
    contexts = _joined([_contexts(c, layout, used) for c, layout in zip(classes, layouts, strict=True)], np.uint16)
    contexts[strips] |= rans.RESTART
    coded = _parse_lanes(sections, name, len(bounds) - 1)
    codes = rans.decode(coded, contexts, bounds, freqs, _machine(layouts))
    del contexts
    return _restored(codes, classes, layouts, sections, name)


def _machine(layouts: Sequence[Layout]) -> Array:
    states = {layout.trellis for layout in layouts} - {0}
    if not states:
        return np.zeros((1, 2), np.uint8)
    if len(states) > 1 or not states <= PARITY_CHECKS.keys():
        raise ArtifactError(f"no single known trellis among {sorted(states)} states: the artifact is damaged")
    return next_states(states.pop()).astype(np.uint8)


def _parse_bitmap(value: int) -> Array:
    if not 0 <= value < 1 << (2 * spread.CLASSES):
        raise ArtifactError("a table bitmap is out of range: the artifact is damaged")
    return np.array([value >> i & 1 for i in range(2 * spread.CLASSES)], bool)


def _contexts(classes: _Classes, layout: Layout, used: list[Array]) -> Array:
    """uint16 contexts of one matrix (without RESTART), in strip order."""
    mask = used[layout.family] if layout.family < len(used) else np.zeros(2 * spread.CLASSES, bool)
    usable = mask[0::2] & mask[1::2] if layout.trellis else mask[0::2]
    first = sum(int(u.sum()) for u in used[: layout.family])
    number = (first + np.cumsum(mask) - 1)[0::2]
    lookup = np.where(usable, number, rans.NO_TABLE).astype(np.uint16)[classes.table]
    if layout.trellis:
        lookup |= np.where(classes.on, np.uint16(rans.ON_TRELLIS | rans.DOUBLE), np.uint16(rans.DOUBLE))
    contexts = lookup[classes.where]
    if not usable[classes.table].all() and (contexts & rans.TABLE == rans.NO_TABLE).any():
        raise ArtifactError("a spread class has no probability table: the artifact is damaged")
    return contexts


def _parse_lanes(sections: dict[str, bytes], name: str, lanes: int) -> rans.Lanes:
    raw = np.frombuffer(sections.get(f"{name}.lanes", b""), np.uint8)
    words = sections.get(f"{name}.words", b"")
    if len(raw) != 8 * lanes or len(words) % 2:
        raise ArtifactError("the coder's lane table does not fit its lanes: the artifact is damaged")
    table = np.ascontiguousarray(raw.reshape(4, -1).T).view(">u4").ravel()
    counts = table[lanes:].astype(np.int64)
    return rans.Lanes(table[:lanes].astype(np.uint32), counts, np.frombuffer(words, "<u2").astype(np.uint16))


def _restored(
    codes: Array, classes: list[_Classes], layouts: Sequence[Layout], sections: dict[str, bytes], name: str
) -> list[Array]:
    """Matrices from what the coder decoded, the bits put aside and the escape list."""
    bits = np.unpackbits(np.frombuffer(sections.get(f"{name}.aside", b""), np.uint8))
    escapes = np.frombuffer(sections.get(f"{name}.escapes", b""), "<i4")
    out, at, bit, escape = [], 0, 0, 0
    for c, layout in zip(classes, layouts, strict=True):
        mine = codes[at : at + len(c.where)]
        at += len(c.where)
        escaped = np.flatnonzero(mine == rans.ESCAPED)
        aside = c.put_aside()
        if aside is not None or len(escaped):
            mine = mine.astype(np.int32)
        if aside is not None:
            aside[escaped] = 0
            bit = _insert_aside(mine, aside, bits, bit, 2 if layout.trellis else 1)
        if len(escaped) > len(escapes) - escape:
            raise ArtifactError("the escape list is too short: the artifact is damaged")
        if len(escaped):
            mine[escaped] = escapes[escape : escape + len(escaped)]
            escape += len(escaped)
        out.append(from_strips(mine, layout.shape))
    if escape != len(escapes) or (bit + 7) // 8 != len(bits) // 8:
        raise ArtifactError("escapes or raw bits are left over: the artifact is damaged")
    return out


def _insert_aside(codes: Array, aside: Array, bits: Array, at: int, keep: int) -> int:
    """Put the middle bits back under `keep` low bits, in place; the position behind those that were used."""
    for width in np.unique(aside).tolist():
        where = np.flatnonzero(aside == width)
        chunk = bits[at : at + len(where) * width].astype(np.int32)
        if len(chunk) != len(where) * width:
            raise ArtifactError("the section of raw bits is too short: the artifact is damaged")
        at += len(chunk)
        middle = (chunk.reshape(len(where), width) << np.arange(width, dtype=np.int32)).sum(1, dtype=np.int32)
        short = codes[where]
        codes[where] = (short >> keep) << (keep + width) | middle << keep | (short & ((1 << keep) - 1))
    return at
