"""Files that training writes: whole or not at all, by way of a temporary sibling."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn


def save_checkpoint(path: Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Write {"model": state dict on the CPU, "config": config}, what `pgolf pack` reads."""
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    save(path, {"model": state, "config": config})


def save(path: Path, value: Any) -> None:
    """torch.save to a temporary sibling, then rename."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(value, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
