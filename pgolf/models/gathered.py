"""Tensors that ranks hold in parts (FSDP2's and tensor parallelism's DTensors), made whole one at a time.

Every rank has to ask for the same ones in the same order. What was gathered lies in a file, so that no rank has all of them in
memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pgolf.common import scratch


def whole(tensor: Tensor) -> Tensor:
    """A tensor itself, or all of it, on the CPU, where ranks have parts."""
    if not hasattr(tensor, "full_tensor") or tensor.is_meta:
        return tensor
    found: Tensor = tensor.full_tensor().cpu().contiguous()
    numbers = scratch.kept(found.reshape(-1).view(torch.uint8).numpy())
    return torch.from_numpy(numbers).view(found.dtype).reshape(found.shape)
