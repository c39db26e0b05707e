"""Arrays too large to be held in memory beside others of their size: they lie in files without a name.

The system writes their pages out where memory is short, and takes them back when they are looked at. A file has no name from
the start, so that nothing is left of it however the process ends. What is small lies in memory as any array does; so does all
where the folder of temporary files (TMPDIR) is full, or the system has no such files.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

LARGE = 1 << 24  # bytes from which an array lies in a file
PIECE = 1 << 22  # numbers that are worked on at a time, where temporaries would be as large as the array

Kind = TypeVar("Kind", bound=np.generic)


def empty(shape: tuple[int, ...], dtype: type[Kind] | np.dtype[Kind]) -> NDArray[Kind]:
    """An array of these numbers, whatever they are at first (zeros where it lies in a file)."""
    size = prod(shape) * np.dtype(dtype).itemsize
    mapped = _mapped(size) if size >= LARGE else None
    return np.empty(shape, dtype) if mapped is None else np.frombuffer(mapped, dtype).reshape(shape)


def zeros(shape: tuple[int, ...], dtype: type[Kind] | np.dtype[Kind]) -> NDArray[Kind]:
    """An array of zeros."""
    size = prod(shape) * np.dtype(dtype).itemsize
    mapped = _mapped(size) if size >= LARGE else None
    return np.zeros(shape, dtype) if mapped is None else np.frombuffer(mapped, dtype).reshape(shape)


def kept(array: NDArray[Kind]) -> NDArray[Kind]:
    """The array itself where it is small, else a copy of it that lies in a file."""
    if array.nbytes < LARGE:
        return array
    out = empty(array.shape, array.dtype)
    out[...] = array
    return out


def pieces(rows: int, width: int) -> list[slice]:
    """Stretches of `rows` rows of `width` numbers that are worked on at a time."""
    step = max(2, PIECE // max(width, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _mapped(size: int) -> Any | None:
    """Bytes of a file without a name, which has room for them; None where there is none."""
    if not hasattr(os, "posix_fallocate"):
        return None
    try:
        with tempfile.TemporaryFile(prefix="pgolf-") as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a page that finds no room later would end the process
            return mmap.mmap(file.fileno(), size)
    except OSError:
        return None
