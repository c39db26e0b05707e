"""Bits put aside: the middle bits of wide codes, stored as they are, because a wide Gaussian is flat on that scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError

Array = NDArray[Any]

MAX_WIDTH = 24  # with a start anywhere in a byte, a field lies within 32 bits
_PIECE = 1 << 16  # entries at a time, so that temporaries stay small


def shorten(codes: Array, widths: Array, low: int) -> Array:
    """`codes` [n] without the `widths` bits above their `low` lowest bits: one, or two where a trellis needs them."""
    short: Array = codes >> widths + low << low | codes & (1 << low) - 1
    return short


def middle(codes: Array, widths: Array, low: int) -> Array:
    """What `shorten` takes out."""
    return codes >> low & (1 << widths) - 1


def lengthen(short: Any, middles: Any, widths: Any, low: int) -> Any:
    """int32: the codes that `shorten` and `middle` came from. Arrays of any kind."""
    return (short >> low << widths | middles) << low | short & (1 << low) - 1


def write(middles: Array, widths: Array) -> bytes:
    """Fields of `widths` bits [n], 0 to MAX_WIDTH each, as bytes: without gaps, most significant bit first, zeros at the end."""
    ends = np.cumsum(widths, dtype=np.int64)
    out = np.zeros((int(widths.sum(dtype=np.int64)) + 7) // 8 + 4, np.uint8)
    for at in range(0, len(widths), _PIECE):
        width, start = widths[at : at + _PIECE].astype(np.int64), (ends - widths)[at : at + _PIECE]
        field = middles[at : at + _PIECE].astype(np.int64) << (32 - (start & 7) - width)
        for k in range(4):
            np.bitwise_or.at(out, (start >> 3) + k, (field >> (24 - 8 * k) & 0xFF).astype(np.uint8))
    return out[:-4].tobytes()


def read(data: bytes, first: int, widths: Array) -> Array:
    """int64 [n]: fields of `widths` (int32) bits, the first one beginning at bit `first`.

    Raises IndexError where the data end too soon.
    """
    ends = np.cumsum(widths) + first
    windows = np.ndarray(len(data), ">u4", data + bytes(3), strides=(1,))  # the 32 bits that begin at each byte
    start = ends - widths
    fields: Array = windows[start >> 3] >> 32 - (start & 7) - widths & (1 << widths) - 1
    return fields


def check_all_read(data: bytes, bits: int) -> None:
    """Raises ArtifactError unless `data` holds just so many bits and zeros up to the end of the last byte."""
    if len(data) != (bits + 7) // 8 or (data and data[-1] & ((1 << (-bits % 8)) - 1)):
        raise ArtifactError("the bits put aside do not fit the codes: the artifact is damaged")
