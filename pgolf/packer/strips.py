"""The order of the symbols: matrices cut into strips, strips shared out among the coder's lanes.

What will surprise you:
* A strip is one column by at most STRIP rows, because trellis paths run down columns. Strips follow each other block of
  rows by block of rows, column by column, matrix by matrix.
* A lane owns a run of whole strips, so a trellis state never crosses lanes; lanes are even to within a strip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError
from pgolf.packer.plane import Spread
from pgolf.packer.trellis import STRIP

Array = NDArray[Any]
Shape = tuple[int, int]

MAX_SUMS = 1 << 12  # distinct values of rows[i] + cols[j]: 1024 octaves, more than float32 weights can differ by


def to_strips(matrix: Array) -> Array:
    """[R, C] -> [R · C], strip after strip."""
    out = np.empty(matrix.size, matrix.dtype)
    rows, cols = matrix.shape
    for top in range(0, rows, STRIP):
        block = matrix[top : top + STRIP]
        out[top * cols : top * cols + block.size].reshape(cols, len(block))[:] = block.T
    return out


def from_strips(flat: Array, shape: Shape) -> Array:
    """The inverse of `to_strips`."""
    rows, cols = shape
    out = np.empty(shape, flat.dtype)
    for top in range(0, rows if cols else 0, STRIP):
        block = out[top : top + STRIP]
        block[:] = flat[top * cols : top * cols + block.size].reshape(cols, len(block)).T
    return out


def strip_lengths(shape: Shape) -> Array:
    """int64: length of every strip of a matrix."""
    rows, cols = shape
    if not cols:
        return np.zeros(0, np.int64)
    full, rest = divmod(rows, STRIP)
    return np.repeat(np.array([STRIP, rest], np.int64), [full * cols, cols if rest else 0])


def lane_bounds(shapes: Sequence[Shape], lanes: int) -> Array:
    """int64 [at most lanes + 1]: lane l starts at the first strip that starts at or after l/lanes of all symbols.

    Lanes that would be empty are left out.
    """
    lengths = np.concatenate([strip_lengths(shape) for shape in shapes] or [np.zeros(0, np.int64)])
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    targets = np.arange(lanes + 1) * int(starts[-1]) // lanes
    return np.unique(starts[np.searchsorted(starts, targets)])


@dataclass(frozen=True)
class Sums:
    """rows[i] + cols[j] − low of one matrix: every decision about an entry is looked up in a short table over these.

    low: the lowest sum; size: how many values the sums may take; rows: uint16 [R] and cols: uint16 [C], from 0 up.
    """

    low: int
    size: int
    rows: Array
    cols: Array

    @staticmethod
    def of(spread: Spread) -> Sums:
        """Raises ArtifactError where the classes differ by more than any codes can."""
        if not spread.rows.size or not spread.cols.size:
            return Sums(0, 0, np.zeros(0, np.uint16), np.zeros(0, np.uint16))
        low = (int(spread.rows.min()), int(spread.cols.min()))
        size = int(spread.rows.max()) + int(spread.cols.max()) - sum(low) + 1
        if size > MAX_SUMS:
            raise ArtifactError(f"spread classes of one matrix differ by {size} steps: the artifact is damaged")
        rows, cols = (spread.rows - low[0]).astype(np.uint16), (spread.cols - low[1]).astype(np.uint16)
        return Sums(sum(low), size, rows, cols)

    def values(self) -> Array:
        """int64 [size]: the sums themselves."""
        return np.arange(self.low, self.low + self.size)

    def where(self) -> Array:
        """[R · C] in strip order: each entry's place among `values`, in the narrowest type that holds it."""
        kind = np.uint8 if self.size <= 256 else np.uint16
        rows, cols = self.rows.astype(kind), self.cols.astype(kind)
        out = np.empty(rows.size * cols.size, kind)
        for top in range(0, rows.size, STRIP):
            part = rows[top : top + STRIP]
            at = top * cols.size
            np.add(cols[:, None], part, out=out[at : at + part.size * cols.size].reshape(cols.size, part.size))
        return out
