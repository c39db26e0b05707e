"""Interleaved rANS: symbols and contexts to 16-bit words, one independent stream a lane.

What will surprise you:
* Lanes share nothing but the tables. Each owns a run of whole strips, a 32-bit state and a run of words, so numpy steps
  all lanes together, a compiled loop takes a few lanes at a time, and a GPU gives each lane a thread.
* The encoder runs backwards. Every lane starts at LOW and must be back at LOW when the decoder has read its last
  symbol and its last word: that is checked, and catches nearly any damage.
* With a trellis the decoder keeps a code state beside the coder's: its lowest bit (parity) picks the second of two
  tables, and the lowest bit of the decoded value picks the branch (DESIGN.md §5).

Duda, "Asymmetric numeral systems", arXiv 1311.2540; interleaving: Giesen, arXiv 1402.3392.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError
from pgolf.packer.compiled import loops
from pgolf.packer.strips import Sums, strip_lengths
from pgolf.packer.tables import ESCAPES, OFFSET, PRECISION, TOTAL

LOW = 1 << 16  # states live in [LOW, LOW << 16)
TABLE = 0x1FF  # context bits: number of the table for parity 0 (parity 1: the next one)
DOUBLE = 1 << 13  # the code is 2·value + parity (a trellis lattice), not the value itself
ON_TRELLIS = 1 << 14  # this symbol reads and advances the trellis state
RESTART = 1 << 15  # first symbol of a strip: the trellis state returns to 0 before it
ESCAPED = -(1 << 15)  # decoded code that says: take the next one of the escape list

# A table gives its two escapes a slot each, so a symbol of frequency f <= 2^15 - 2 takes a state x to at most
# x·f/2^15 + 2. From 2^32 down to 2^16 that lasts 2^14 · ln(2^17) symbols: no word and no state can hold more.
SYMBOLS_A_WORD = 193_100

Array = NDArray[Any]


@dataclass(frozen=True)
class Lanes:
    """One coded sequence. states: uint32 [K] to start decoding from; counts: int64 [K] words a lane; words: uint16."""

    states: Array
    counts: Array
    words: Array


@dataclass(frozen=True)
class Contexts:
    """The context of every symbol, said strip by strip: symbol i of strip s has lookup[base[s] + rows[first[s] + i]].

    starts: int64 [S + 1], where each strip begins; lookup: uint16, TABLE | DOUBLE | ON_TRELLIS of every possible sum of a
    row's and a column's class; base, first: int64 [S]; rows: uint16.
    """

    starts: Array
    base: Array
    first: Array
    rows: Array
    lookup: Array

    @staticmethod
    def of(sums: Sequence[Sums], lookups: Sequence[Array]) -> Contexts:
        """From the class sums of each matrix and the contexts that stand for them."""
        lengths, base, first = [], [], []
        row, entry = 0, 0
        for each, lookup in zip(sums, lookups, strict=True):
            mine = strip_lengths((each.rows.size, each.cols.size))
            blocks = len(mine) // max(each.cols.size, 1)
            lengths.append(mine)
            base.append(np.tile(each.cols.astype(np.int64) + entry, blocks))
            first.append(
                row + np.cumsum(mine.reshape(blocks, -1)[:, 0]).repeat(each.cols.size) - mine if blocks else mine
            )
            row += each.rows.size
            entry += len(lookup)
        starts = np.concatenate([[0], np.cumsum(_joined(lengths, np.int64))]).astype(np.int64)
        rows = _joined([each.rows for each in sums], np.uint16)
        return Contexts(
            starts, _joined(base, np.int64), _joined(first, np.int64), rows, _joined(list(lookups), np.uint16)
        )

    def expanded(self) -> Array:
        """uint16 [N]: the context of every symbol, with RESTART."""
        out = np.empty(self.starts[-1], np.uint16)
        blocks = np.flatnonzero(np.diff(self.first, prepend=-1, append=-1))  # strips of one block share their rows
        for a, b in pairwise(blocks):
            height = self.starts[a + 1] - self.starts[a]
            rows = self.rows[self.first[a] : self.first[a] + height].astype(np.int32)
            index = self.base[a:b, None].astype(np.int32) + rows
            out[self.starts[a] : self.starts[b]] = self.lookup.take(index).ravel()
        out[self.starts[:-1]] |= RESTART
        return out


def _joined(parts: list[Array], dtype: Any) -> Array:
    return np.concatenate([*parts, np.zeros(0, dtype)]).astype(dtype, copy=False)


def encode(symbols: Array, tables_of: Array, bounds: Array, freqs: Array) -> Lanes:
    """Code symbols (uint8 [N]), each with its table's number (uint16 [N], parity included).

    bounds: int64 [K+1], lane l owns symbols bounds[l]:bounds[l+1]. freqs: uint16 [T, 256], rows sum to 2^15.
    """
    compiled = loops()
    freq = freqs.astype(np.uint32)
    cum = np.cumsum(freq, axis=1, dtype=np.uint32) - freq
    return Lanes(*(compiled.encode if compiled else _encode)(symbols, tables_of, bounds, freq, cum))


def _encode(symbols: Array, tables_of: Array, bounds: Array, freq: Array, cum: Array) -> tuple[Array, Array, Array]:
    order, active = _schedule(bounds)
    steps = len(active)
    x = np.full(len(order), LOW, np.uint64)
    words = np.zeros((steps, len(order)), np.uint16)
    emitted = np.zeros((steps, len(order)), bool)
    packed = (freq.astype(np.uint64) << 32 | cum).ravel()
    start = bounds[:-1][order]
    for t in range(steps - 1, -1, -1):
        k = active[t]
        at = start[:k] + t
        entry = packed[tables_of[at].astype(np.int64) * 256 + symbols[at]]
        f = entry >> np.uint64(32)
        state = x[:k]
        full = state >= f << np.uint64(32 - PRECISION)
        words[t, :k] = state & np.uint64(0xFFFF)
        emitted[t, :k] = full
        state = np.where(full, state >> np.uint64(16), state)
        quotient, rest = np.divmod(state, f)
        x[:k] = (quotient << np.uint64(PRECISION)) + rest + (entry & np.uint64(0xFFFFFFFF))
    back = np.argsort(order)
    return x[back].astype(np.uint32), emitted.sum(0)[back], words.T[back][emitted.T[back]]


def decode(lanes: Lanes, contexts: Contexts, bounds: Array, freqs: Array, next_states: Array) -> Array:
    """The inverse of `encode`, as codes: int16 [N], ESCAPED where the symbol was an escape.

    bounds, freqs: as in `encode`. next_states: uint8 [S, 2]; any array of that form when nothing is ON_TRELLIS.
    Raises ArtifactError if a lane does not end where it must.
    """
    first_word = np.concatenate([[0], np.cumsum(lanes.counts)]).astype(np.int64)
    if first_word[-1] != len(lanes.words):
        raise ArtifactError("coded words are missing or left over: the artifact is truncated or damaged")
    words = np.append(lanes.words, np.zeros(1, np.uint16))  # a damaged lane may look one past the end
    compiled = loops()
    out, states, ends = (compiled.decode if compiled else _decode)(
        lanes.states.astype(np.uint32), first_word[:-1], words, contexts, bounds, freqs, next_states
    )
    if (states != LOW).any() or (ends != first_word[1:]).any():
        raise ArtifactError("the entropy-coded data do not end where they must: the artifact is damaged")
    return out


def _slots(freqs: Array) -> Array:
    """int64 [T · 2^15], all that a slot decides: frequency << 32 | code << 16 | symbol's parity << 15 | slot's offset."""
    symbol = np.tile(np.arange(256), len(freqs)).repeat(freqs.ravel())
    code = np.where(symbol < ESCAPES, ESCAPED, symbol - OFFSET)
    freq = freqs.ravel().repeat(freqs.ravel()).astype(np.int64)
    first = (np.cumsum(freqs, axis=1, dtype=np.int64) - freqs).ravel().repeat(freqs.ravel())
    offset = np.arange(len(symbol)) % TOTAL - first
    slots: Array = freq << 32 | (code & 0xFFFF) << 16 | (symbol & 1) << PRECISION | offset
    return slots


def _decode(
    states: Array, first_word: Array, words: Array, strips: Contexts, bounds: Array, freqs: Array, next_states: Array
) -> tuple[Array, Array, Array]:
    """(codes int16 [N], final states, words read up to): all lanes go one symbol further at each step.

    Everything is int64, because numpy would convert narrower indices at every step.
    """
    contexts, slots = strips.expanded(), _slots(freqs)
    trellis = _Trellis(next_states, len(bounds) - 1) if (strips.lookup & (ON_TRELLIS | DOUBLE)).any() else None
    order, active = _schedule(bounds)
    at, x, pointer = bounds[:-1][order], states[order].astype(np.int64), first_word[order]
    final_x, final_pointer = x.copy(), pointer.copy()
    out = np.empty(len(contexts), np.int16)
    if trellis is None:
        contexts &= TABLE
    for k in active:
        if k < len(x):  # lanes are sorted by length: the last ones have ended
            final_x[: len(x)], final_pointer[: len(x)] = x, pointer
            at, x, pointer = at[:k], x[:k], pointer[:k]
        context = contexts.take(at)
        table = context if trellis is None else trellis.tables(context)
        slot = slots.take(np.left_shift(table, PRECISION, dtype=np.int64) + (x & (TOTAL - 1)))
        x = (slot >> 32) * (x >> PRECISION) + (slot & (TOTAL - 1))
        need = np.flatnonzero(x < LOW)
        read = pointer.take(need)
        x[need] = x.take(need) << 16 | words.take(read, mode="clip")
        pointer[need] = read + 1
        code = slot >> 16
        out[at] = code if trellis is None else trellis.advance(code.astype(np.int16), slot >> PRECISION & 1)
        at += 1
    final_x[: len(x)], final_pointer[: len(x)] = x, pointer
    back = np.argsort(order)
    return out, final_x[back], final_pointer[back]


class _Trellis:
    """The trellis states of all running lanes."""

    def __init__(self, next_states: Array, lanes: int) -> None:
        self.next_states, self.state = next_states, np.zeros(lanes, np.uint16)

    def tables(self, context: Array) -> Array:
        """Table numbers, parity included, of each lane's next symbol; its context is remembered."""
        self.state = self.state[: len(context)] * (context < RESTART)
        self.on, self.doubled = (context & ON_TRELLIS) != 0, (context & DOUBLE) != 0
        self.parity = self.state & self.on
        tables: Array = (context & TABLE) + self.parity
        return tables

    def advance(self, code: Array, branch: Array) -> Array:
        """Codes of the symbols just decoded; the states move on."""
        successors = self.next_states[self.state, branch]
        self.state = np.where(self.on, successors, self.state)
        return np.where(self.doubled & (code != ESCAPED), 2 * code + self.parity.astype(np.int16), code)


def _schedule(bounds: Array) -> tuple[Array, list[int]]:
    """Lanes by falling length, and how many of them are still running at each step."""
    lengths = np.diff(bounds)
    order = np.argsort(-lengths, kind="stable")
    steps = int(lengths.max(initial=0))
    running = len(lengths) - np.searchsorted(np.sort(lengths), np.arange(steps), side="right")
    return order, [int(k) for k in running]
