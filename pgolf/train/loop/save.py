"""Files that training writes and reads back: whole or not at all, by way of a temporary sibling.

checkpoint.pt holds averaged weights and their configuration, for packing; state.pt holds what a resumed run needs: live
weights, optimizers, average, step and settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pgolf.common.nested import differences
from pgolf.errors import CheckpointError, UsageError
from pgolf.models.torchfile import torch_load, torch_save

if TYPE_CHECKING:
    from pgolf.train.loop.trainer import Trainer

SHOWN = 3  # differences that a refusal names


def save_checkpoint(path: Path, state: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """Write {"model": state dict on the CPU, "config": config}, what `pgolf pack` reads."""
    torch_save({"model": {name: tensor.cpu() for name, tensor in state.items()}, "config": config}, path)


def save_state(path: Path, trainer: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write {"trainer": Trainer.state_dict(), "settings": plain data}."""
    torch_save({"trainer": trainer, "settings": settings}, path)


def resume(trainer: Trainer, path: Path, settings: dict[str, Any]) -> None:
    """Make the trainer go on where the run that saved `path` stopped. Raises as `read_state`; the trainer is lost then."""
    state = read_state(path, settings)
    try:
        trainer.load_state_dict(state)
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError):
        raise _damaged(path) from None


def read_state(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The Trainer's state dict, on the CPU. UsageError for none, or one of other settings; CheckpointError if damaged."""
    if not path.is_file():
        raise UsageError(f"nothing to resume: there is no {path}")
    try:
        saved = torch_load(path)
        trainer: dict[str, Any] = saved["trainer"]
        found = differences(saved["settings"], settings)
        finite = math.isfinite(trainer["seconds"]) and type(trainer["step"]) is int and trainer["step"] >= 0
    except (CheckpointError, RuntimeError, LookupError, ValueError, TypeError, AttributeError):
        raise _damaged(path) from None
    if not finite:
        raise _damaged(path)
    if found:
        shown = [f"{name} is {a} there, {b} here" for name, (a, b) in found.items()][:SHOWN]
        more = f" (and {len(found) - SHOWN} more)" if len(found) > SHOWN else ""
        raise UsageError(f"{path} is of a run with other settings: {'; '.join(shown)}{more}")
    return trainer


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is damaged, or not the state of a training run")
