"""The order of the symbols: matrices cut into strips, strips shared out among the coder's lanes.

A strip is one column by at most STRIP rows, because trellis paths run down columns. Strips follow each other block of
rows by block of rows, column by column, matrix by matrix. A lane owns a run of whole strips, so a trellis state never
crosses lanes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError
from pgolf.packer.coder.trellis import STRIP
from pgolf.packer.plane import Spread

Array = NDArray[Any]
Shape = tuple[int, int]

MAX_SUMS = (
    1 << 12
)  # values of rows[i] + cols[j] from the lowest to the highest and 0: 1024 octaves, more than weights span


def to_strips(matrix: Array) -> Array:
    """[R, C] -> [R · C], strip after strip."""
    return np.concatenate([matrix[top : top + STRIP].T for top in range(0, len(matrix) + 1, STRIP)], None)


def from_strips(flat: Array, shape: Shape) -> Array:
    """The inverse of `to_strips`."""
    matrix = np.empty(shape, flat.dtype)
    for top in range(0, len(matrix), STRIP):
        block = matrix[top : top + STRIP].T
        block[:] = flat[top * len(block) :][: block.size].reshape(block.shape)
    return matrix


def strip_lengths(shape: Shape) -> Array:
    """int64: length of every strip of a matrix."""
    rows, cols = shape
    return np.minimum(STRIP, rows - np.arange(0, rows, STRIP)).repeat(cols)


def strip_starts(shapes: Iterable[Shape]) -> Array:
    """int64 [S + 1]: where each strip begins, and the end."""
    return np.cumsum(np.concatenate([[0], *map(strip_lengths, shapes)]))


def lane_bounds(starts: Array, lanes: int) -> Array:
    """int64 [lanes + 1]: lane l starts at the first strip that starts at or after l/lanes of all symbols.

    Lanes are even to within a strip, and one may own nothing.
    """
    bounds: Array = starts[np.searchsorted(starts, np.arange(lanes + 1) * starts[-1] // (lanes or 1))]
    return bounds


@dataclass(frozen=True)
class ClassSums:
    """rows[i] + cols[j] of one matrix: every decision about an entry is looked up in a short table over these.

    values: int64, all that the sums may be, in a row; rows: uint16 [R], cols: uint16 [C]: sums are values[rows + cols].
    """

    values: Array
    rows: Array
    cols: Array

    def where(self) -> Array:
        """uint16 [R · C] in strip order: each entry's place among `values`."""
        blocks = [self.cols[:, None] + self.rows[top : top + STRIP] for top in range(0, len(self.rows) + 1, STRIP)]
        return np.concatenate(blocks, None)


def class_sums(spread: Spread) -> ClassSums:
    """Raises ArtifactError where the classes differ by more than any codes can."""
    row, col = spread.rows, spread.cols
    low_row, low_col = row.min(initial=0), col.min(initial=0)
    low, high = low_row + low_col, row.max(initial=0) + col.max(initial=0)
    if high - low >= MAX_SUMS:
        raise ArtifactError(f"spread classes of one matrix reach from {low} to {high}: the artifact is damaged")
    return ClassSums(np.arange(low, high + 1), (row - low_row).astype(np.uint16), (col - low_col).astype(np.uint16))
