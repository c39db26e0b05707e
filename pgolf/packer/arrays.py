"""Integer arrays <-> artifact, with nothing but numpy arrays on the outside: what `pgolf.packer.encode` does."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError, UsageError
from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import Entry
from pgolf.packer.plane import Plane

_INT32 = np.iinfo(np.int32)


def encode(codes: Mapping[str, NDArray[Any]]) -> bytes:
    """See pgolf.packer.encode."""
    return artifact.encode({name: _entry(name, np.asarray(array)) for name, array in codes.items()}).data


def _entry(name: str, array: NDArray[Any]) -> Entry:
    if array.dtype.kind not in "iu":
        raise UsageError(f"{name!r} has dtype {array.dtype}: only integers can be packed losslessly; quantize it first")
    if array.size and not (_INT32.min <= int(array.min()) and int(array.max()) <= _INT32.max):
        raise UsageError(f"{name!r} reaches from {array.min()} to {array.max()}: codes must fit into 32 bits")
    matrix = array.reshape(_matrix_shape(array.shape)).astype(np.int32)
    return Entry(array.dtype.name, array.shape, planes=(Plane(matrix),))


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """[first dimension, all others]; a vector is a column."""
    if not prod(shape):
        return (0, 0)
    return (shape[0], prod(shape[1:])) if shape else (1, 1)


def decode(data: bytes) -> dict[str, NDArray[Any]]:
    """See pgolf.packer.decode."""
    entries, _ = artifact.decode(data)
    return {name: _array(name, entry) for name, entry in entries.items()}


def _array(name: str, entry: Entry) -> NDArray[Any]:
    planes = entry.planes or ()
    scaled = any(plane.row_scale is not None or plane.col_scale is not None for plane in planes)
    dtype = np.dtype(entry.dtype) if entry.dtype.startswith(("int", "uint")) else None
    if len(planes) != 1 or scaled or dtype is None:
        raise ArtifactError(f"{name!r} is not a plain integer array but a weight: load the artifact with pgolf.load")
    codes = planes[0].codes
    if codes.size and not (np.iinfo(dtype).min <= codes.min() and codes.max() <= np.iinfo(dtype).max):
        raise ArtifactError(f"the codes of {name!r} do not fit {dtype}: the artifact is damaged")
    return codes.reshape(entry.shape).astype(dtype)
