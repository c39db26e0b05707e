"""Interleaved rANS: symbols and contexts to 16-bit words, one independent stream a lane.

What will surprise you:
* Lanes share nothing but the tables. Each owns a run of consecutive symbols, a 32-bit state and a run of words, so
  numpy steps all lanes together, a compiled loop takes lane after lane, and a GPU gives each lane a thread.
* The encoder runs backwards. Every lane starts at LOW and must be back at LOW when the decoder has read its last
  symbol and its last word: that is checked, and catches nearly any damage.
* With a trellis the decoder keeps a code state beside the coder's: its lowest bit (parity) picks the second of two
  tables, and the lowest bit of the decoded value picks the branch (DESIGN.md §5).

Duda, "Asymmetric numeral systems", arXiv 1311.2540; interleaving: Giesen, arXiv 1402.3392.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError
from pgolf.packer.tables import ESCAPES, OFFSET, PRECISION, TOTAL

LOW = 1 << 16  # states live in [LOW, LOW << 16)
TABLE = 0x1FF  # context bits: index of the table for parity 0 (parity 1: the next one)
NO_TABLE = 0x1FF  # is no table's index
ON_TRELLIS = 1 << 14  # this symbol reads and advances the trellis state
RESTART = 1 << 15  # the trellis state returns to 0 before this symbol
DOUBLE = 1 << 13  # the code is 2·value + parity (a trellis lattice), not the value itself
ESCAPED = -(1 << 15)  # decoded code that says: take the next one of the escape list

Array = NDArray[Any]


@dataclass(frozen=True)
class Lanes:
    """One coded sequence. states: uint32 [K] to start decoding from; counts: int64 [K] words a lane; words: uint16."""

    states: Array
    counts: Array
    words: Array


def encode(symbols: Array, tables_of: Array, bounds: Array, freqs: Array) -> Lanes:
    """Code symbols (uint8 [N]), each with its final table index (uint16 [N], parity included).

    bounds: int64 [K+1], lane l owns symbols bounds[l]:bounds[l+1]. freqs: uint16 [T, 256], rows sum to 2^15.
    """
    compiled = _compiled()
    freq = freqs.astype(np.uint32)
    cum = np.zeros_like(freq)
    np.cumsum(freq[:, :-1], axis=1, out=cum[:, 1:])
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


def decode(lanes: Lanes, contexts: Array, bounds: Array, freqs: Array, next_states: Array) -> Array:
    """The inverse of `encode`, as codes: int16 [N], ESCAPED where the symbol was an escape.

    contexts: uint16 [N] (TABLE | DOUBLE | ON_TRELLIS | RESTART); bounds, freqs: as in `encode`.
    next_states: uint8 [S, 2]; any array of that form when no context is ON_TRELLIS.
    Raises ArtifactError if a lane does not end where it must.
    """
    compiled = _compiled()
    first_word = np.concatenate([[0], np.cumsum(lanes.counts)]).astype(np.int64)
    if first_word[-1] != len(lanes.words):
        raise ArtifactError("coded words are missing or left over: the artifact is truncated or damaged")
    freq = freqs.astype(np.uint32)
    cum = np.cumsum(freq, axis=1, dtype=np.uint32) - freq
    lookup = np.repeat(np.tile(np.arange(256, dtype=np.uint8), len(freq)), freqs.ravel())  # [T · 2^15] slot -> symbol
    words = np.append(lanes.words, np.zeros(1, np.uint16))  # a damaged lane may look one past the end
    run = compiled.decode if compiled else _decode
    out, states, ends = run(lanes.states, first_word, words, contexts, bounds, freq, cum, lookup, next_states)
    if (states != LOW).any() or (ends != first_word[1:]).any():
        raise ArtifactError("the entropy-coded data do not end where they must: the artifact is damaged")
    return out


def _decode(
    states: Array, first_word: Array, words: Array, contexts: Array, bounds: Array,
    freq: Array, cum: Array, lookup: Array, next_states: Array,
) -> tuple[Array, Array, Array]:  # fmt: skip
    order, active = _schedule(bounds)
    at, x, pointer = bounds[:-1][order], states[order].astype(np.uint32), first_word[:-1][order]
    packed = (freq << 16 | cum).ravel()  # both fit: they are at most 2^15
    successors = next_states.astype(np.uint16).ravel()
    node = np.zeros(len(order), np.uint16)
    final_x, final_pointer = x.copy(), pointer.copy()
    out = np.zeros(len(contexts), np.int16)
    trellis = bool((contexts & ON_TRELLIS).any())
    slot_mask, shift = np.uint32(TOTAL - 1), np.uint32(PRECISION)
    for k in active:
        if k < len(x):  # lanes are sorted by length: the last ones have ended
            final_x[: len(x)], final_pointer[: len(x)] = x, pointer
            at, x, pointer, node = at[:k], x[:k], pointer[:k], node[:k]
        context = contexts.take(at)
        table = (context & TABLE).astype(np.int32)
        if trellis:
            node = node * (context < RESTART)
            on = (context & ON_TRELLIS) != 0
            table += node & on
        slot = x & slot_mask
        symbol = lookup.take((table << PRECISION) + slot.astype(np.int32))
        entry = packed.take((table << 8) + symbol)
        x = (entry >> 16) * (x >> shift) + slot - (entry & 0xFFFF)
        need = np.flatnonzero(x < LOW)
        x[need] = x[need] << 16 | words.take(pointer[need], mode="clip")
        pointer[need] += 1
        code = symbol.astype(np.int16) - OFFSET
        if trellis:
            code <<= (context & DOUBLE) != 0
            code += (node & on).astype(np.int16)
        code[symbol < ESCAPES] = ESCAPED
        out[at] = code
        if trellis:
            node = np.where(on, successors.take(2 * node + (symbol & 1)), node)
        at = at + 1
    final_x[: len(x)], final_pointer[: len(x)] = x, pointer
    back = np.argsort(order)
    return out, final_x[back], final_pointer[back]


def _schedule(bounds: Array) -> tuple[Array, list[int]]:
    """Lanes by falling length, and how many of them are still running at each step."""
    lengths = np.diff(bounds)
    order = np.argsort(-lengths, kind="stable")
    steps = int(lengths.max(initial=0))
    running = len(lengths) - np.searchsorted(np.sort(lengths), np.arange(steps), side="right")
    return order, [int(k) for k in running]


def _compiled() -> Any:
    """The numba twins of the two loops, or None where numba is missing (the decoder stub) or switched off."""
    if os.environ.get("PGOLF_COMPILED", "1") == "0":
        return None
    try:
        from pgolf.packer import rans_numba
    except ImportError:
        return None
    return rans_numba
