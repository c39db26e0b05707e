"""What every rANS decoder shares, in numpy, compiled or on a GPU: the range of its states and the contexts of its symbols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.packer.coder.strips import Sums
from pgolf.packer.coder.trellis import STRIP

Array = NDArray[Any]

LOW = 1 << 16  # states live in [LOW, LOW << 16)
TABLE = 0xFF  # context bits: number of the table for parity 0 (parity 1: the next one)
ON_TRELLIS = 1 << 8  # this symbol reads and advances the trellis state


def contexts_by_strip(sums: Sequence[Sums], lookups: Sequence[Array]) -> tuple[Array, Array, Array, Array]:
    """Every symbol's context, said strip by strip: symbol i of strip s has lookup[base[s] + rows[first[s] + i]]."""
    base, first = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    row, entry = 0, 0
    for each, lookup in zip(sums, lookups, strict=True):
        tops = np.arange(0, each.rows.size, STRIP)
        base.append(np.tile(each.cols.astype(np.int64) + entry, len(tops)))
        first.append((row + tops).repeat(each.cols.size))
        row += each.rows.size
        entry += len(lookup)
    nothing = np.zeros(0, np.uint16)
    rows, table = np.concatenate([nothing, *(s.rows for s in sums)]), np.concatenate([nothing, *lookups])
    return np.concatenate(base), np.concatenate(first), rows, table
