"""Which lengths a model takes: the one probe of packing, calibrating, scoring and writing text."""

from __future__ import annotations

import torch
from torch import nn

from pgolf.errors import CurvatureError
from pgolf.models import transformers_model
from pgolf.models.logits import Logits, device_of

TOLD = ("max_position_embeddings", "n_positions")  # what a configuration of transformers calls its context
SHORTEST = 16  # tokens of a context: a model that fails on so few fails for another reason


def usable_length(run: Logits, wanted: int, *, odd: bool = False) -> int:
    """The longest length up to `wanted` tokens that the model behind `run` takes as it is; learned positions end.

    odd: an odd one that none of the model's sizes equals, where it takes any, as `self_generate` wants it. Found by
    halving and then by bisection; call it in `undisturbed`. Raises as `logits_of`, with the shortest failure.
    """
    length = (wanted - 1) | 1 if odd else wanted
    taken, refused = length, None
    while not _takes(run, taken, last=taken < SHORTEST):
        taken, refused = ((taken // 2 - 1) | 1 if odd else max(1, taken // 2)), taken
    while refused is not None and refused - taken > 1 + odd:
        middle = (taken + refused) // 2
        middle = (middle - 1) | 1 if odd else middle
        if middle <= taken:
            break
        taken, refused = (middle, refused) if _takes(run, middle) else (taken, middle)
    multiple = run.multiple
    if multiple == 1 or taken < multiple:
        return taken
    taken = taken // multiple * multiple
    return _unlike(run.model, taken, multiple) if odd else taken


def told_length(model: nn.Module) -> int | None:
    """The context that a model of transformers was made for, as its configuration says; None of all others."""
    config = transformers_model.config_of(model)
    told = next((config[name] for name in TOLD if config and config.get(name)), None)
    return told if isinstance(told, int) and told > 1 else None


def _takes(run: Logits, length: int, *, last: bool = False) -> bool:
    try:
        run(torch.zeros(1, length, dtype=torch.int64, device=device_of(run.model)))
    except CurvatureError:
        if last:
            raise
        return False
    return True


def _unlike(model: nn.Module, length: int, multiple: int) -> int:
    """The longest multiple up to `length` that is no size of the model's tensors, or `length`."""
    sizes = {size for p in model.parameters() for size in p.shape}
    return next((n for n in range(length, length // 2, -multiple) if n not in sizes), length)
