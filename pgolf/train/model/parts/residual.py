"""Residual mix: every block's input is a learned mix of the residual stream and the embedding.

Source: openai/parameter-golf #59, #60.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

STEEPNESS = 3.0


class ResidualMix(nn.Module):
    """stream·x + start·x0, per channel; depth: 0 of the first block, 1 of the last.

    It starts as a schedule over depth, a sigmoid: early blocks read mostly the embedding, late ones mostly the stream.
    """

    def __init__(self, dim: int, depth: float) -> None:
        super().__init__()
        share = 1.0 / (1.0 + math.exp(-STEEPNESS * (depth - 0.5)))
        self.stream = nn.Parameter(torch.full((dim,), share))
        self.start = nn.Parameter(torch.full((dim,), 1.0 - share))

    def forward(self, x: Tensor, x0: Tensor) -> Tensor:
        return self.stream.to(x.dtype) * x + self.start.to(x.dtype) * x0
