"""Bits put aside: the middle bits of wide codes, stored as they are, because a wide Gaussian is flat on that scale.

What will surprise you: each entry may put a different number of bits aside (24 at most). They follow each other without
gaps, most significant bit first, in the order of the codes; the last byte is filled with zero bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError

Array = NDArray[Any]

MAX_WIDTH = 24  # with a start anywhere in a byte, a field lies within 32 bits
_PIECE = 1 << 16  # entries at a time, so that temporaries stay small


def shorten(values: Array, widths: Array) -> Array:
    """`values` [n] without the `widths` bits above their lowest bit."""
    short: Array = ((values >> (widths + 1)) << 1) | (values & 1)
    return short


def middle(values: Array, widths: Array) -> Array:
    """The `widths` bits above the lowest bit of `values` [n]: what `shorten` takes out."""
    return (values >> 1) & ((1 << widths) - 1)


def lengthen(short: Array, middles: Array, widths: Array) -> Array:
    """The values that `shorten` and `middle` came from."""
    values: Array = (short >> 1) << (widths + 1) | middles << 1 | (short & 1)
    return values


def write(middles: Array, widths: Array) -> bytes:
    """Fields of `widths` bits [n] as bytes."""
    ends = np.cumsum(widths, dtype=np.int64)
    total = int(ends[-1]) if ends.size else 0
    out = np.zeros((total + 7) // 8 + 4, np.uint8)
    for at in range(0, len(widths), _PIECE):
        width, start = widths[at : at + _PIECE].astype(np.int64), (ends - widths)[at : at + _PIECE]
        field = middles[at : at + _PIECE].astype(np.int64) << (32 - (start & 7) - width)
        for k in range(4):
            np.bitwise_or.at(out, (start >> 3) + k, (field >> (24 - 8 * k) & 0xFF).astype(np.uint8))
    return out[:-4].tobytes()


def read(data: bytes, widths: Array) -> Array:
    """int32 [n]: the inverse of `write`. Raises ArtifactError unless `data` has exactly the right length and fill."""
    ends = np.cumsum(widths, dtype=np.int64)
    total = int(ends[-1]) if ends.size else 0
    if len(data) != (total + 7) // 8 or (data and data[-1] & ((1 << (-total % 8)) - 1)):
        raise ArtifactError("the bits put aside do not fit the codes: the artifact is damaged")
    padded = np.frombuffer(data + bytes(4), np.uint8)
    out = np.empty(len(widths), np.int32)
    for at in range(0, len(widths), _PIECE):
        width, start = widths[at : at + _PIECE].astype(np.int64), (ends - widths)[at : at + _PIECE]
        window = np.zeros(len(width), np.int64)
        for k in range(4):
            window = window << 8 | padded[(start >> 3) + k]
        out[at : at + _PIECE] = (window >> (32 - (start & 7) - width)) & ((1 << width) - 1)
    return out
