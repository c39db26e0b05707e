"""Arrays of large models that are needed again later: they lie in files without a name, in the folder of temporary files.

Their pages are the system's to take back where memory is short. A file has no name from the start, so that nothing is left of it
however the process ends. Where there is no room for one, or no such files, an array stays in memory, as those of smaller
models do.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

MANY = 1 << 26  # weights of a model from which what is kept of its matrices lies in files
LARGE = 1 << 20  # bytes of an array that is worth a file
PIECE = 1 << 22  # numbers that are worked on at a time, where temporaries would be as large as a matrix

Kind = TypeVar("Kind", bound=np.generic)


def kept(array: NDArray[Kind]) -> NDArray[Kind]:
    """The same numbers in a file, mapped; the array itself where it is small or there is no room."""
    if array.nbytes < LARGE:
        return array
    try:
        with tempfile.TemporaryFile(prefix="pgolf-") as file:
            file.write(np.ascontiguousarray(array).data)
            file.flush()
            mapped = mmap.mmap(
                file.fileno(), array.nbytes, access=mmap.ACCESS_COPY
            )  # torch wants arrays that can be written
    except OSError:
        return array
    return np.frombuffer(mapped, array.dtype).reshape(array.shape)


def zeros(shape: tuple[int, ...], dtype: type[Kind]) -> NDArray[Kind]:
    """Zeros to add to, in a file where they are large."""
    size = prod(shape) * np.dtype(dtype).itemsize
    mapped = _mapped(size) if size >= LARGE else None
    return np.zeros(shape, dtype) if mapped is None else np.frombuffer(mapped, dtype).reshape(shape)


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
