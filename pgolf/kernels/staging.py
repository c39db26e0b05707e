"""`together`: many small tensors onto a device in one copy from page-locked memory, which the host need not wait for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

ALIGN = 16  # bytes: kernels are compiled for pointers that it divides, and once more for others


def together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The same tensors, of the CPU, on `device`: views of one block of memory there, each at a multiple of ALIGN bytes."""
    ends = list(accumulate((-(-t.nbytes // ALIGN) * ALIGN for t in tensors), initial=0))
    staged = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for tensor, view in zip(tensors, _views(staged, tensors, ends), strict=True):
        view.copy_(tensor)
    return _views(staged.to(device, non_blocking=True), tensors, ends)


def _views(block: Tensor, like: Sequence[Tensor], starts: Sequence[int]) -> list[Tensor]:
    return [block[start : start + t.nbytes].view(t.dtype).view(t.shape) for t, start in zip(like, starts, strict=False)]
