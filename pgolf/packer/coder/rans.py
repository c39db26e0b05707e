"""Interleaved rANS: symbols and contexts to 16-bit words, one independent stream a lane.

Lanes share nothing but the tables. Each owns a run of whole strips, a 32-bit state and a run of words, so numpy steps all
lanes together, a compiled loop takes a few lanes at a time, and a GPU gives each lane a thread. The encoder runs
backwards: every lane starts at LOW and must be back at LOW when the decoder has read its last symbol and its last word.

Duda, "Asymmetric numeral systems", arXiv 1311.2540; interleaving: Giesen, arXiv 1402.3392.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError
from pgolf.packer.coder.layout import LOW, TABLE, CodedLanes
from pgolf.packer.coder.loops import Loops
from pgolf.packer.coder.tables import PRECISION, TOTAL

LAST = 1 << 9  # last symbol of a strip: the trellis state returns to 0 behind it
FLAGS = 8  # bits below ON_TRELLIS
ONE_STATE = 8  # length of the transitions of a trellis that is none
CHUNK = 64  # symbols a lane that the numpy decoder fetches and stores at once

Array = NDArray[Any]


@dataclass(frozen=True)
class Lanes:
    """One coded sequence. states: uint32 [K] to start decoding from; counts: int64 [K] words a lane; words: uint16."""

    states: Array
    counts: Array
    words: Array


def encode(symbols: Array, tables_of: Array, bounds: Array, freqs: Array, loops: Loops | None = None) -> Lanes:
    """Code symbols (uint8 [N]), each with its table's number (uint8 [N], parity included).

    bounds: int64 [K+1], lane l owns symbols bounds[l]:bounds[l+1]. freqs: int64 [T, 256], rows sum to 2^15.
    """
    return Lanes(*(loops.encode if loops else encode_lanes)(symbols, tables_of, bounds, freqs))


def encode_lanes(symbols: Array, tables_of: Array, bounds: Array, freqs: Array) -> tuple[Array, Array, Array]:
    """(states, counts, words) of the lanes, all lanes going one symbol back at each step."""
    order, active = _schedule(bounds)
    steps = len(active)
    x = np.full(len(order), LOW, np.uint64)
    words = np.zeros((steps, len(order)), np.uint16)
    emitted = np.zeros((steps, len(order)), bool)
    freq = freqs.astype(np.uint64)
    packed = (freq << 32 | np.cumsum(freq, axis=1) - freq).ravel()
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


def _schedule(bounds: Array) -> tuple[Array, list[int]]:
    """Lanes by falling length, and how many of them are still running at each step."""
    lengths = np.diff(bounds)
    order = np.argsort(-lengths, kind="stable")
    steps = int(lengths.max(initial=0))
    running = len(lengths) - np.searchsorted(np.sort(lengths), np.arange(steps), side="right")
    return order, [int(k) for k in running]


def decode(coded: CodedLanes, loops: Loops | None = None) -> Array:
    """The inverse of `encode`, as codes: int16 [N], ESCAPED where the symbol was an escape.

    Raises ArtifactError if a lane does not end where it must.
    """
    check_lanes(coded)
    codes, *ends = (loops.decode if loops else decode_lanes)(coded)
    check_ends(coded, *ends)
    return codes


def check_lanes(coded: CodedLanes) -> None:
    """Raises ArtifactError unless the lanes share out all words and start in states that a coder can be in."""
    if coded.counts.sum(dtype=np.int64) != len(coded.words):
        raise ArtifactError("coded words are missing or left over: the artifact is truncated or damaged")
    if (coded.states < LOW).any():
        raise ArtifactError("a coder state is out of range: the artifact is damaged")


def check_ends(coded: CodedLanes, states: Array, read: Array) -> None:
    """Raises ArtifactError unless every lane came back to where its encoder started, and read all of its words.

    This catches nearly any damage.
    """
    if (states != LOW).any() or (read != coded.ends()).any():
        raise ArtifactError("the entropy-coded data do not end where they must: the artifact is damaged")


def decode_lanes(coded: CodedLanes) -> tuple[Array, Array, Array]:
    """(codes int16 [N], final states, words read up to): all lanes go one symbol further at each step.

    A lane at its end goes on with a table of one symbol, which changes nothing. With a trellis each lane keeps a code
    state (node) beside the coder's: its lowest bit (parity) picks the second of two tables, and the lowest bit of the
    symbol picks the branch (docs/METHOD.md §3).
    """
    x, at_word = coded.states.astype(np.uint32), coded.ends() - coded.counts
    idle = np.uint16(len(coded.freqs))
    number, entries = _slots(coded.freqs)
    bounds = coded.bounds[:, None]
    out = np.concatenate(
        [*(lookup[s.where()] for s, lookup in zip(coded.sums, coded.lookups, strict=True)), [idle]], dtype=np.uint16
    )
    out[coded.starts[1:] - 1] |= LAST  # contexts: they give way to codes
    node = 0 * at_word
    symbols = np.empty((CHUNK, len(x)), np.uint16)
    for step in range(0, int(np.diff(bounds[:, 0]).max(initial=0)), CHUNK):
        at = bounds[:-1] + np.arange(step, step + CHUNK)
        at[at >= bounds[1:]] = len(out) - 1
        contexts = out[at].T.astype(np.int64, order="C")
        for slot, flags, symbol in zip((contexts & TABLE) << PRECISION, contexts >> FLAGS, symbols, strict=True):
            low = x & (TOTAL - 1)
            slot += low
            slot += (node & flags & 1) << PRECISION
            number.take(slot, out=symbol, mode="clip")
            node = coded.transitions.take(node << 3 | flags << 1 | symbol & 1)
            entry = entries.take(symbol, mode="clip")
            x >>= PRECISION
            x *= entry >> 16
            x += low - (entry & 0xFFFF)
            need = np.flatnonzero(x < LOW)
            x[need] = x[need] << 16 | coded.words.take(at_word[need], mode="clip")
            at_word[need] += 1
        out[at] = coded.codes.take(symbols, mode="clip").view(np.uint16).T
        out[-1] = idle
    return out[:-1].view(np.int16), x, at_word


def _slots(freqs: Array) -> tuple[Array, Array]:
    """Of each slot table · 2^15 + s: the symbol's number, uint16 256 · table + symbol.
    Of each number: frequency << 16 | first slot, uint32.

    One more table, of a single symbol, leaves a state as it is.
    """
    first = np.cumsum(freqs, 1) - freqs
    number = np.arange(freqs.size + 1, dtype=np.uint16).repeat(np.append(freqs, TOTAL))
    return number, np.append(freqs << 16 | first, TOTAL << 16).astype(np.uint32)
