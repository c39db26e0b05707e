"""Integers <-> bytes, without torch: for people who have their own quantizer.

>>> data = pgolf.packer.encode({"layer.0": codes, "layer.1": more_codes})  # integer numpy arrays of any shape
>>> codes = pgolf.packer.decode(data)["layer.0"]  # the same values, shape and dtype
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

__all__ = ["decode", "encode"]


def encode(codes: Mapping[str, NDArray[Any]]) -> bytes:
    """Integer arrays -> an artifact, the same bytes for any order of the names.

    codes: name -> array of any integer dtype and number of dimensions, values within int32. The first dimension should
    be the output channels, as in a weight: the coder looks for structure by row and by column of [first, rest].
    Raises UsageError on anything else.
    """
    from pgolf.packer import arrays  # brings brotli and zstandard

    return arrays.encode(codes)


def decode(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays that `encode` was given, in the order of their names; every value, shape and dtype is the same.

    Byte order becomes the machine's own. Raises ArtifactError for anything but a whole artifact made by `encode`.
    """
    from pgolf.packer import arrays  # brings brotli and zstandard

    return arrays.decode(data)
