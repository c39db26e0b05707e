"""Value residual: every later layer mixes the first layer's values into its own.

Source: arXiv 2410.17897 (learnable mix, starting at one half each).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ValueMix(nn.Module):
    """own·v + first·v_first, with two learned numbers for each key-value head."""

    def __init__(self, kv_heads: int) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.full((kv_heads,), 0.5))
        self.first = nn.Parameter(torch.full((kv_heads,), 0.5))

    def forward(self, v: Tensor, first: Tensor) -> Tensor:
        """v and first: [B, T, kv_heads, d]."""
        return self.own.to(v.dtype)[:, None] * v + self.first.to(v.dtype)[:, None] * first
