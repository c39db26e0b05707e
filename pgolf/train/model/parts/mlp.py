"""The MLP of a block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.train.model.parts.linear import Linear


class MLP(nn.Module):
    """LeakyReLU²: a slope of ½ below zero, then squared (arXiv 2109.08668)."""

    def __init__(self, dim: int, mult: int) -> None:
        super().__init__()
        self.fc = Linear(dim, mult * dim)
        self.proj = Linear(mult * dim, dim, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(F.leaky_relu(self.fc(x), 0.5).square())
        return y
