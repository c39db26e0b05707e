"""The two loops of rans.py, compiled: same arguments, same bits, lane after lane instead of all lanes in step.

Single-threaded on purpose: numba's OpenMP barriers spin, and on a shared machine cost fifty times what they save.
See rans.py for what the code means.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pgolf.packer.rans import DOUBLE, ESCAPED, LOW, ON_TRELLIS, RESTART, TABLE
from pgolf.packer.tables import ESCAPES, OFFSET, PRECISION

Array = NDArray[Any]


@numba.njit(cache=True, nogil=True)
def encode(symbols: Array, tables_of: Array, bounds: Array, freq: Array, cum: Array) -> tuple[Array, Array, Array]:
    """See rans._encode."""
    lanes = len(bounds) - 1
    states = np.empty(lanes, np.uint32)
    counts = np.empty(lanes, np.int64)
    buffer = np.empty(
        len(symbols), np.uint16
    )  # a symbol emits at most one word; each lane fills its share from the end
    for lane in range(lanes):
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
    words = np.empty(counts.sum(), np.uint16)
    end = 0
    for lane in range(lanes):
        words[end : end + counts[lane]] = buffer[bounds[lane + 1] - counts[lane] : bounds[lane + 1]]
        end += counts[lane]
    return states, counts, words


@numba.njit(cache=True, nogil=True)
def decode(
    states: Array, first_word: Array, words: Array, contexts: Array, bounds: Array,
    freq: Array, cum: Array, lookup: Array, next_states: Array,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """See rans._decode."""
    lanes = len(bounds) - 1
    out = np.empty(len(contexts), np.int16)
    final = np.empty(lanes, np.uint32)
    ends = np.empty(lanes, np.int64)
    last = len(words) - 1
    for lane in range(lanes):
        x = np.uint32(states[lane])
        pointer = first_word[lane]
        node = 0
        for i in range(bounds[lane], bounds[lane + 1]):
            context = contexts[i]
            on = context & ON_TRELLIS
            if context & RESTART:
                node = 0
            parity = node & 1 if on else 0
            table = (context & TABLE) + parity
            slot = x & np.uint32((1 << PRECISION) - 1)
            symbol = lookup[(table << PRECISION) + slot]
            x = np.uint32(freq[table, symbol] * (x >> np.uint32(PRECISION)) + slot - cum[table, symbol])
            if x < LOW:
                x = np.uint32((x << np.uint32(16)) | words[min(pointer, last)])
                pointer += 1
            code = np.int64(symbol) - OFFSET
            if symbol < ESCAPES:
                code = np.int64(ESCAPED)
            elif context & DOUBLE:
                code = 2 * code + parity
            out[i] = code
            if on:
                node = next_states[node, symbol & 1]
        final[lane] = x
        ends[lane] = pointer
    return out, final, ends
