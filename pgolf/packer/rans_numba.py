"""The two loops of rans.py, compiled: same arguments, same bits. See rans.py for what the code means.

What will surprise you:
* A lane's next symbol waits for its last one, so one lane at a time leaves the processor idle: the decoder takes
  TOGETHER lanes in step, as numpy takes all of them.
* Threads are plain threads, each with its share of the lanes (the loops hold no lock). Numba's own parallel loops are
  not used: their OpenMP barriers spin, and on a shared machine cost fifty times what they save.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pgolf.packer.rans import DOUBLE, ESCAPED, LOW, ON_TRELLIS, RESTART, TABLE
from pgolf.packer.tables import ESCAPES, OFFSET, PRECISION

Array = NDArray[Any]

TOGETHER = 8
SLOT_MASK = np.uint32((1 << PRECISION) - 1)
WORTH_THREADS = 1 << 18  # symbols


def encode(symbols: Array, tables_of: Array, bounds: Array, freq: Array, cum: Array) -> tuple[Array, Array, Array]:
    """See rans._encode."""
    lanes = len(bounds) - 1
    states, counts = np.empty(lanes, np.uint32), np.empty(lanes, np.int64)
    buffer = np.empty(len(symbols), np.uint16)  # a symbol emits one word at most; a lane fills its part from the end
    _on_threads(lanes, len(symbols), _encode, symbols, tables_of, bounds, freq, cum, states, counts, buffer)
    words = np.empty(counts.sum(), np.uint16)
    end = 0
    for stop, count in zip(bounds[1:].tolist(), counts.tolist(), strict=True):
        words[end : end + count] = buffer[stop - count : stop]
        end += count
    return states, counts, words


def _on_threads(lanes: int, size: int, loop: Any, *arguments: Any) -> None:
    """loop(first lane, last lane, ...) on shares of the lanes; what it writes does not depend on the shares."""
    workers = os.cpu_count() or 1 if size >= WORTH_THREADS else 1
    cuts = [lanes * i // workers for i in range(workers + 1)]
    if workers == 1:
        loop(0, lanes, *arguments)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda a, b: loop(a, b, *arguments), cuts[:-1], cuts[1:]))


@numba.njit(cache=True, nogil=True)
def _encode(first, last, symbols, tables_of, bounds, freq, cum, states, counts, buffer):  # type: ignore[no-untyped-def]
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


def decode(
    states: Array, first_word: Array, words: Array, contexts: Array, bounds: Array,
    freq: Array, cum: Array, lookup: Array, next_states: Array,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """See rans._decode."""
    out = np.empty(len(contexts), np.int16)
    final, ends = states.astype(np.uint32), first_word[:-1].copy()
    entries = (freq << np.uint32(16) | cum).ravel()
    lanes = len(bounds) - 1
    _on_threads(lanes, len(out), _decode, words, contexts, bounds, entries, lookup, next_states, out, final, ends)
    return out, final, ends


@numba.njit(cache=True, nogil=True)
def _decode(first, last, words, contexts, bounds, entries, lookup, next_states, out, final, ends):  # type: ignore[no-untyped-def]
    node = np.zeros(TOGETHER, np.int64)
    last_word = len(words) - 1
    for group in range(first, last, TOGETHER):
        size = min(TOGETHER, last - group)
        steps = 0
        for j in range(size):
            steps = max(steps, bounds[group + j + 1] - bounds[group + j])
        for step in range(steps):
            for j in range(size):
                lane = group + j
                i = bounds[lane] + step
                if i >= bounds[lane + 1]:
                    continue
                context = contexts[i]
                if context & RESTART:
                    node[j] = 0
                parity = node[j] & 1 if context & ON_TRELLIS else 0
                table = np.int64(context & TABLE) + parity
                x = final[lane]
                slot = x & SLOT_MASK
                symbol = lookup[(table << PRECISION) + slot]
                entry = entries[(table << 8) + symbol]
                x = (entry >> np.uint32(16)) * (x >> np.uint32(PRECISION)) + slot - (entry & np.uint32(0xFFFF))
                if x < LOW:
                    x = x << np.uint32(16) | np.uint32(words[min(ends[lane], last_word)])
                    ends[lane] += 1
                final[lane] = x
                code = np.int64(symbol) - OFFSET
                if symbol < ESCAPES:
                    code = np.int64(ESCAPED)
                elif context & DOUBLE:
                    code = 2 * code + parity
                out[i] = code
                if context & ON_TRELLIS:
                    node[j] = next_states[node[j], symbol & 1]
