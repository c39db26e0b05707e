"""Which matrices a tensor is: what plans, quantizers and curvature must agree on."""

from __future__ import annotations

from math import prod

NARROWEST = 8  # rows or columns of a matrix worth quantizing


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(slices, rows, columns): a matrix, a 3-D bank as a stack of matrices, a convolution [O, I, k...] as [O, I·k].

    A bank of slices too narrow for scales of their own ([12, d, 4], gates of twelve layers) is one matrix [12, 4·d] too.
    """
    if len(shape) < 2 or 0 in shape:
        return None
    if len(shape) == 3 and min(shape[1:]) >= NARROWEST:
        return shape[0], shape[1], shape[2]
    return 1, shape[0], prod(shape[1:])
