"""Mini depth recurrence: some middle layers run twice from a certain share of training on, nearly for free in bytes.

Source: openai/parameter-golf #686 (second passes with scales of their own), #1204 (late start, partly untied MLPs).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from pgolf.train.model.parts.mlp import MLP


class SecondPass(nn.Module):
    """What the second pass through a looped block has to itself: the branches' scales and, if untied, an MLP."""

    def __init__(self, dim: int, mlp_mult: int, *, untied: bool) -> None:
        super().__init__()
        self.attn_scale = nn.Parameter(torch.ones(dim))
        self.mlp_scale = nn.Parameter(torch.ones(dim))
        self.mlp = MLP(dim, mlp_mult) if untied else None


def route(layers: int, looped: range) -> Iterator[tuple[int, bool]]:
    """(layer, whether it is the second pass) in the order of execution; an empty `looped` runs each layer once.

    The looped layers run as 1 2 3 1 2 3, not 1 1 2 2 3 3, and the second round neither pushes nor pops U-Net skips.
    """
    for layer in range(layers):
        yield layer, False
        if looped and layer == looped[-1]:
            yield from ((again, True) for again in looped)
