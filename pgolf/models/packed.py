"""Weights of a module that stayed packed, as seen by rooms that need not know how (`pgolf.kernels.weight`)."""

from __future__ import annotations

import sys

from torch import Tensor


def is_packed(tensor: object) -> bool:
    """Whether a weight of a module holds codes. Nothing can where nobody imported the class, which brings triton."""
    known = sys.modules.get("pgolf.kernels.weight")
    return known is not None and isinstance(tensor, known.PackedWeight)


def unpacked(tensor: Tensor) -> Tensor:
    """The numbers of a weight, whether it is packed or not."""
    if not is_packed(tensor):
        return tensor
    weights: Tensor = getattr(tensor, "dense")()  # noqa: B009  Tensor has none
    return weights
