"""Our own model, built again from the configuration that its checkpoints carry."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from pgolf.errors import ModelError, UsageError
from pgolf.models.usermodel import load_state, one_line
from pgolf.train.model.gpt import untrained

ARCH = "pgolf.train.model:GPT"  # what checkpoints call it: kept for ever, wherever the class lives


def from_config(config: Mapping[str, Any], state: Mapping[str, Tensor], dropped: Collection[str] = ()) -> nn.Module:
    """The model of a checkpoint that our trainer wrote, holding `state`, in eval mode; dropped: as in `load_state`. Raises
    ModelError."""
    if not is_ours(config):
        raise ModelError("the checkpoint's configuration is not of a pgolf model: add --model FILE.py:NAME")
    try:
        model = untrained(dict(config), state)
    except (KeyError, TypeError, ValueError, ArithmeticError, UsageError) as error:
        raise ModelError(f"the checkpoint's configuration does not make a model ({one_line(error)})") from None
    load_state(model, state, dropped)
    return model.eval()


def is_ours(config: Mapping[str, Any] | None) -> bool:
    """Whether a configuration is of our own trainer's model, rather than of somebody's run."""
    return config is not None and config.get("arch") == ARCH
