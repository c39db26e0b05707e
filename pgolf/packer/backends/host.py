"""The processor as a `stream.Device`: compiled loops for what numpy does to all codes in several passes.

Each method has its definition in numpy (stream, strips, artifact), which is what the decoder stub takes along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pgolf.common.threads import on_threads
from pgolf.packer.coder import rans, stream
from pgolf.packer.coder.layout import CodedLanes
from pgolf.packer.coder.loops import Loops
from pgolf.packer.coder.strips import ClassSums
from pgolf.packer.coder.trellis import STRIP
from pgolf.packer.plane import Plane

Array = NDArray[Any]

TILE = 8  # columns at a time: so few runs are read and written at once that none falls out of the first cache


@dataclass(frozen=True)
class Host(stream.Device):
    """Codes are numpy arrays here too."""

    def decode(self, coded: CodedLanes, loops: Loops | None) -> Array:
        return rans.decode(coded, loops)

    def restored(
        self,
        codes: Array,
        sums: Sequence[ClassSums],
        layouts: Sequence[stream.Layout],
        middles: bytes,
        escapes: Array,
    ) -> list[Array]:
        return stream.restored(codes, sums, layouts, middles, escapes, self)

    def from_strips(self, part: Array, shape: tuple[int, int]) -> Array:
        matrix = np.empty(shape, part.dtype)
        _from_strips(part, matrix)
        return matrix

    def checksum(self, planes: Sequence[Plane]) -> int:
        firsts = accumulate((plane.codes.size for plane in planes), initial=0)
        sums = on_threads(lambda plane, first: int(_checksum(plane.codes.ravel(), first)), planes, list(firsts)[:-1])
        return sum(sums) % 2**64


@numba.njit(cache=True, nogil=True)
def _from_strips(flat, matrix):  # type: ignore[no-untyped-def]  # numba infers
    rows, cols = matrix.shape
    for top in range(0, rows, STRIP):
        block = matrix[top : top + STRIP]
        strips = flat[top * cols :][: block.size].reshape(cols, len(block))
        for left in range(0, cols, TILE):
            right = min(left + TILE, cols)
            for i in range(len(block)):
                for j in range(left, right):
                    block[i, j] = strips[j, i]


@numba.njit(cache=True, nogil=True)
def _checksum(codes, first):  # type: ignore[no-untyped-def]  # numba infers
    total = np.int64(0)
    for i in range(codes.size):
        total += np.int64(codes[i]) * (2 * (first + i) + 1)  # 64-bit integers wrap around
    return total
