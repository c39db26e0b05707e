"""The tensor of an entry that was not quantized."""

from __future__ import annotations

import torch
from torch import Tensor

from pgolf.models import checkpoint
from pgolf.packer.format.artifact import Entry


def kept(entry: Entry) -> Tensor:
    """In its own dtype, on the host."""
    assert entry.raw is not None
    return checkpoint.from_bytes(entry.raw, entry.stored or entry.dtype, entry.shape).to(getattr(torch, entry.dtype))
