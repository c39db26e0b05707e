"""Sparse attention gate: each head's output is scaled by what the first few channels of the layer's input say.

Source: KellerJordan/modded-nanogpt #117 (few channels do better than all), openai/parameter-golf #1667, #1787.
"""

from __future__ import annotations

from torch import Tensor, nn

from pgolf.train.model.parts.linear import Linear


class HeadGate(nn.Module):
    """2·sigmoid(W x[:channels]) for each head; W starts at zero, so every gate at 1."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.channels = channels
        self.read = Linear(channels, heads, zero=True)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [B, T, heads, d], the layer's input x [B, T, dim] -> [B, T, heads, d]."""
        gates: Tensor = 2.0 * self.read(x[..., : self.channels]).sigmoid()
        return y * gates.unsqueeze(-1)
