"""What every rANS decoder shares, in numpy, compiled or on a GPU: its input, the range of its states, its symbols' contexts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.packer.coder.strips import ClassSums
from pgolf.packer.coder.trellis import STRIP

Array = NDArray[Any]

LOW = 1 << 16  # states live in [LOW, LOW << 16)
TABLE = 0xFF  # context bits: number of the table for parity 0 (parity 1: the next one)
ON_TRELLIS = 1 << 8  # this symbol reads and advances the trellis state


@dataclass(frozen=True)
class CodedLanes:
    """One coded sequence and what its symbols mean: all that a decoder is given.

    states: uint32 [K], where each lane starts; counts: uint32 [K], words a lane; words: uint16, lane after lane.
    sums: of each matrix; lookups: the context (uint16: TABLE | ON_TRELLIS) that each of its sums stands for.
    starts: int64 [S + 1], where strips begin. freqs: int64 [T, 256], rows sum to 2^15; codes: int16 [T · 256], what the
    symbols stand for. transitions: of the trellis (trellis.transitions). bounds: int64 [K + 1], the symbols of each lane.
    """

    states: Array
    counts: Array
    words: Array
    sums: Sequence[ClassSums]
    lookups: Sequence[Array]
    starts: Array
    freqs: Array
    codes: Array
    transitions: Array
    bounds: Array

    def ends(self) -> Array:
        """int64 [K]: where each lane's words end."""
        return np.cumsum(self.counts, dtype=np.int64)


def contexts_by_strip(coded: CodedLanes) -> tuple[Array, Array, Array, Array]:
    """Every symbol's context, said strip by strip: symbol i of strip s has lookup[base[s] + rows[first[s] + i]]."""
    base, first = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    row, entry = 0, 0
    for sums, lookup in zip(coded.sums, coded.lookups, strict=True):
        tops = np.arange(0, sums.rows.size, STRIP)
        base.append(np.tile(sums.cols.astype(np.int64) + entry, len(tops)))
        first.append((row + tops).repeat(sums.cols.size))
        row += sums.rows.size
        entry += len(lookup)
    nothing = np.zeros(0, np.uint16)
    rows, lookup = np.concatenate([nothing, *(s.rows for s in coded.sums)]), np.concatenate([nothing, *coded.lookups])
    return np.concatenate(base), np.concatenate(first), rows, lookup
