"""Which matrices a tensor is: what plans, quantizers and curvature must agree on."""

from __future__ import annotations

from math import prod

WORTH = 16  # weights that a scale less is worth giving up the curvature of single slices for


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(slices, rows, columns): a matrix, a 3-D bank as a stack of matrices, a convolution [O, I, k...] as [O, I·k].

    A vector is one column. A bank is one matrix [n, R·C] where scales of their own would cost its slices more than that
    saves: gates of twelve layers [12, d, 4], heads [192, 8, 64], a convolution [O, I, k] in one dimension.
    """
    if not shape or 0 in shape:
        return None
    if len(shape) == 1:
        return 1, shape[0], 1
    if len(shape) == 3 and _sides(shape) - _sides((1, shape[0], prod(shape[1:]))) <= prod(shape) / WORTH:
        return shape[0], shape[1], shape[2]
    return 1, shape[0], prod(shape[1:])


def _sides(stack: tuple[int, ...]) -> int:
    """Rows and columns of all slices: how many scales they have."""
    return stack[0] * (stack[1] + stack[2])


def sides(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(slices, rows, columns) in which curvature is summed: of a 3-D parameter every slice by itself, whatever it is
    quantized as."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    return 1, shape[0] if shape else 1, prod(shape[1:])
