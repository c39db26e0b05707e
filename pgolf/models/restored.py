"""Buffers as they were: a model may count, average or cache in them whenever it is run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def restored_buffers(model: nn.Module) -> Iterator[None]:
    """Afterwards the model has the buffers that it had, with the values that they had."""
    held = [(module, dict(module._buffers)) for module in model.modules()]
    every = {id(buffer): buffer for _, buffers in held for buffer in buffers.values() if buffer is not None}
    copies = [
        (buffer, buffer.detach().clone(), buffer._version) for buffer in every.values() if _counts_changes(buffer)
    ]
    try:
        yield
    finally:
        for module, buffers in held:
            if any(module._buffers.get(name) is not buffer for name, buffer in buffers.items()):
                module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, before, version in copies:
                if buffer._version != version:
                    buffer.copy_(before)


def _counts_changes(buffer: Tensor) -> bool:
    return not (buffer.is_inference() or buffer.is_meta or buffer.is_sparse)
