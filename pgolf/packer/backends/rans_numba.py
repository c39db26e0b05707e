"""The coder's loops, compiled: `coder.loops.Loops` with the bits of the definitions in rans.py and classes.py.

Threads are plain threads, each with its share of the lanes (the loops hold no lock). Numba's own parallel loops are not
used: their OpenMP barriers spin, and on a shared machine cost fifty times what they save.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from pgolf.common.threads import on_threads, workers
from pgolf.packer.coder.layout import LOW, ON_TRELLIS, TABLE, CodedLanes, contexts_by_strip
from pgolf.packer.coder.tables import PRECISION

Array = NDArray[Any]

# Lanes that are decoded in step: a lane's next symbol waits for its last one, so one alone leaves the processor idle.
TOGETHER = 4
# log2 of the slots that share an entry of the guide. A slot's symbol is found from the symbol of the slots around it and a
# short walk: a table of all slots would not stay in the cache.
COARSE = 6
SLOT_MASK = np.uint32((1 << PRECISION) - 1)
SHARES = 4  # a worker; more than one, so that none waits long for another


def encode(symbols: Array, tables_of: Array, bounds: Array, freqs: Array) -> tuple[Array, Array, Array]:
    """See rans.encode_lanes."""
    lanes = len(bounds) - 1
    freq = freqs.astype(np.uint32)
    cum = np.cumsum(freq, axis=1, dtype=np.uint32) - freq
    states, counts = np.empty(lanes, np.uint32), np.empty(lanes, np.int64)
    buffer = np.empty(len(symbols), np.uint16)  # a symbol emits one word at most; a lane fills its part from the end

    def run(first: int, last: int) -> None:
        _encode(first, last, symbols, tables_of, bounds, freq, cum, states, counts, buffer)

    on_threads(run, *_shares(lanes))
    words = np.empty(counts.sum(), np.uint16)
    end = 0
    for stop, count in zip(bounds[1:].tolist(), counts.tolist(), strict=True):
        words[end : end + count] = buffer[stop - count : stop]
        end += count
    return states, counts, words


def _shares(lanes: int) -> tuple[list[int], list[int]]:
    """First and last lane of each piece of work."""
    pieces = min(SHARES * workers(), lanes)
    cuts = [lanes * i // max(pieces, 1) for i in range(pieces + 1)]
    return cuts[:-1], cuts[1:]


@numba.njit(cache=True, nogil=True)
def _encode(first, last, symbols, tables_of, bounds, freq, cum, states, counts, buffer):  # type: ignore[no-untyped-def]  # numba infers
    for lane in range(first, last):
        x = np.uint64(LOW)
        at = bounds[lane + 1]
        for i in range(bounds[lane + 1] - 1, bounds[lane] - 1, -1):
            table, symbol = tables_of[i], symbols[i]
            f = np.uint64(freq[table, symbol])
            if x >= f << np.uint64(32 - PRECISION):
                at -= 1
                buffer[at] = x & np.uint64(0xFFFF)
                x >>= np.uint64(16)
            x = ((x // f) << np.uint64(PRECISION)) + x % f + np.uint64(cum[table, symbol])
        states[lane] = x
        counts[lane] = bounds[lane + 1] - at


class _Given(NamedTuple):
    """What the lanes are decoded from. bounds: int64 [K + 1], symbols of each lane; first_strip: int64 [K].

    starts, words, codes, transitions: of `CodedLanes`; base, first_row, rows, lookup: of `contexts_by_strip`.
    entries: int64 [T · 256], frequency << 16 | first slot; guide: uint8, the symbol of every 2^COARSE-th slot.
    """

    bounds: Array
    first_strip: Array
    starts: Array
    base: Array
    first_row: Array
    rows: Array
    lookup: Array
    words: Array
    entries: Array
    guide: Array
    codes: Array
    transitions: Array


class _Found(NamedTuple):
    """What the lanes come to. codes: int16 [N]; states: uint32 [K], at first the start; ends: int64 [K], words read up to."""

    codes: Array
    states: Array
    ends: Array


def decode(coded: CodedLanes) -> tuple[Array, Array, Array]:
    """See rans.decode_lanes."""
    bounds = coded.bounds
    cum = np.cumsum(coded.freqs, axis=1, dtype=np.uint32) - coded.freqs
    slots = np.tile(np.arange(256, dtype=np.uint8), len(coded.freqs)).repeat(coded.freqs.ravel())
    given = _Given(
        bounds,
        np.searchsorted(coded.starts, bounds[:-1]),
        coded.starts,
        *contexts_by_strip(coded),
        coded.words,
        (coded.freqs.astype(np.uint32) << 16 | cum).ravel(),
        slots[:: 1 << COARSE].copy(),
        coded.codes,
        coded.transitions,
    )
    found = _Found(np.empty(bounds[-1], np.int16), coded.states.astype(np.uint32), coded.ends() - coded.counts)
    on_threads(lambda first, last: _decode(first, last, given, found), *_shares(len(bounds) - 1))
    return found


@numba.njit(cache=True, nogil=True)
def _decode(first, last, given, found):  # type: ignore[no-untyped-def]  # numba infers
    bounds, starts, words, entries = given.bounds, given.starts, given.words, given.entries
    out, final, ends = found
    at, stop, edge = np.zeros(TOGETHER, np.int64), np.zeros(TOGETHER, np.int64), np.zeros(TOGETHER, np.int64)
    strip, column, row = np.zeros(TOGETHER, np.int64), np.zeros(TOGETHER, np.int64), np.zeros(TOGETHER, np.int64)
    node = np.zeros(TOGETHER, np.int64)
    past = len(words)
    for group in range(first, last, TOGETHER):
        size = min(TOGETHER, last - group)
        steps = 0
        for j in range(size):
            at[j], stop[j] = bounds[group + j], bounds[group + j + 1]
            edge[j], strip[j] = at[j], given.first_strip[group + j] - 1
            steps = max(steps, stop[j] - at[j])
        for _ in range(steps):
            for j in range(size):
                i = at[j]
                if i == stop[j]:
                    continue
                if i == edge[j]:  # the next strip begins
                    strip[j] += 1
                    edge[j] = starts[strip[j] + 1]
                    column[j], row[j], node[j] = given.base[strip[j]], given.first_row[strip[j]], 0
                context = given.lookup[column[j] + given.rows[row[j]]]
                parity = node[j] & 1 if context & ON_TRELLIS else 0
                table = np.int64(context & TABLE) + parity
                x = final[group + j]
                slot = x & SLOT_MASK
                symbol = np.int64(given.guide[(table << (PRECISION - COARSE)) + (slot >> np.uint32(COARSE))])
                entry = entries[(table << 8) + symbol]
                while slot - (entry & np.uint32(0xFFFF)) >= entry >> np.uint32(16):
                    symbol += 1
                    entry = entries[(table << 8) + symbol]
                x = (entry >> np.uint32(16)) * (x >> np.uint32(PRECISION)) + slot - (entry & np.uint32(0xFFFF))
                if x < LOW:
                    x = x << np.uint32(16) | np.uint32(words[ends[group + j]] if ends[group + j] < past else 0)
                    ends[group + j] += 1
                final[group + j] = x
                out[i] = given.codes[(table << 8) + symbol]
                if context & ON_TRELLIS:
                    node[j] = given.transitions[node[j] << 3 | 2 | symbol & 1]
                at[j] = i + 1
                row[j] += 1


def count(slots: Array, symbols: Array, size: int) -> Array:
    """See classes.count."""
    counts = np.zeros((size, 256), np.int64)
    _count(slots, symbols, counts)
    return counts


@numba.njit(cache=True, nogil=True)
def _count(slots, symbols, counts):  # type: ignore[no-untyped-def]  # numba infers
    for i in range(len(slots)):
        counts[slots[i], symbols[i]] += 1
