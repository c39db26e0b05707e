"""Arrays of large models that are needed again later: they lie in files without a name, in the folder of temporary files.

Their pages are the system's to take back where memory is short. A file has no name from the start, so that nothing is left of it
however the process ends. Where there is no room for one, or no such files, an array stays in memory, as those of smaller
models do.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from dataclasses import dataclass, field
from functools import cache
from math import prod
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

MANY = 1 << 24  # weights of a model from which what is kept of its matrices lies in files
LARGE = 1 << 20  # bytes of an array that is worth a file
WORKED_ON = 1 << 28  # bytes of large matrices, between two times that memory is given back
PIECE = 1 << 22  # numbers that are worked on at a time, where temporaries would be as large as a matrix

DONT_NEED = getattr(mmap, "MADV_DONTNEED", None)  # of a shared map this forgets nothing

Kind = TypeVar("Kind", bound=np.generic)


@dataclass
class _State:
    """maps: of all files that are in use. worked_on: bytes, since memory was given back."""

    maps: WeakSet[mmap.mmap] = field(default_factory=WeakSet)
    worked_on: int = 0
    lock: Lock = field(default_factory=Lock)


_state = _State()


def kept(array: NDArray[Kind]) -> NDArray[Kind]:
    """The same numbers in a file, mapped; the array itself where it is small or there is no room."""
    if array.nbytes < LARGE:
        return array
    try:
        with tempfile.TemporaryFile(prefix="pgolf-") as file:
            file.write(np.ascontiguousarray(array).data)
            file.flush()
            mapped = mmap.mmap(file.fileno(), array.nbytes)
    except OSError:
        return array
    return _array(mapped, array.dtype, array.shape)


def zeros(shape: tuple[int, ...], dtype: type[Kind]) -> NDArray[Kind]:
    """Zeros to add to, in a file where they are large."""
    size = prod(shape) * np.dtype(dtype).itemsize
    mapped = _mapped(size) if size >= LARGE else None
    return np.zeros(shape, dtype) if mapped is None else _array(mapped, np.dtype(dtype), shape)


def _array(mapped: mmap.mmap, dtype: np.dtype[Kind], shape: tuple[int, ...]) -> NDArray[Kind]:
    with _state.lock:
        _state.maps.add(mapped)
    return np.frombuffer(mapped, dtype).reshape(shape)


def worked_on(num_bytes: int) -> None:
    """Say that so much of a large model was read or made: every WORKED_ON bytes memory is given back."""
    with _state.lock:
        _state.worked_on += num_bytes
        enough = _state.worked_on >= WORKED_ON
    if enough:
        give_back()


def give_back() -> None:
    """Give memory back to the system, where it can be given: freed pieces between what stays, and the pages of our files.

    A model of 36M weights took 690 MB less so. What is given back is fetched again when it is used: after every matrix that
    is a tenth of the time of a pack.
    """
    with _state.lock:
        maps, _state.worked_on = list(_state.maps), 0
    for each in maps:
        if DONT_NEED is not None:
            each.madvise(DONT_NEED)
    trim = getattr(_c_library(), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


@cache
def _c_library() -> Any:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has none of this name
        return None


def pieces(rows: int, width: int) -> list[slice]:
    """Stretches of `rows` rows of `width` numbers that are worked on at a time."""
    step = max(2, PIECE // max(width, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _mapped(size: int) -> mmap.mmap | None:
    """Bytes of a file without a name, which has room for them; None where there is none."""
    if not hasattr(os, "posix_fallocate"):
        return None
    try:
        with tempfile.TemporaryFile(prefix="pgolf-") as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a page that finds no room later would end the process
            return mmap.mmap(file.fileno(), size)
    except OSError:
        return None
