"""Parallel residual lanes: attention reads one residual stream, the MLP another, and both write to both.

Both read before either writes, so a block's two branches are independent of each other.

Source: KellerJordan/modded-nanogpt #230, openai/parameter-golf #1204, #1529; parallel blocks, arXiv 2204.02311.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Routes(nn.Module):
    """How much each lane keeps of itself and takes of the two branches' outputs.

    All weights start at 1, where the lanes are equal and the block is a parallel one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.keep = nn.Parameter(torch.ones(2))
        self.from_attn = nn.Parameter(torch.ones(2))
        self.from_mlp = nn.Parameter(torch.ones(2))

    def forward(self, lanes: Tensor, attn: Tensor, mlp: Tensor) -> Tensor:
        """lanes [2, B, T, dim] and the branches' outputs [B, T, dim] -> lanes."""
        return (
            _column(self.keep, lanes) * lanes
            + _column(self.from_attn, lanes) * attn
            + _column(self.from_mlp, lanes) * mlp
        )


class Merge(nn.Module):
    """The weighted sum of the lanes [2, B, T, dim], which the model goes on with; it starts as their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), 0.5))

    def forward(self, lanes: Tensor) -> Tensor:
        return (_column(self.weight, lanes) * lanes).sum(0)


def _column(weights: Tensor, lanes: Tensor) -> Tensor:
    """[2] as [2, 1, 1, 1] in the dtype of the lanes."""
    return weights.to(lanes.dtype).view(2, 1, 1, 1)
