"""SmearGate: a learned gate a channel lets in the embedding of the token before.

Source: openai/parameter-golf #65, #102, #135.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLOSED = -2.0  # the gates start at sigmoid(-2) = 0.12


class SmearGate(nn.Module):
    """x_t becomes (1 - g)·x_t + g·x_(t-1) with a gate g in (0, 1) for each channel.

    A document's first token lets nothing in. Else the last token of one document reaches the next, the leak that
    openai/parameter-golf #1797 was audited for and #1851 closed.
    """

    def __init__(self, dim: int, bos_id: int | None) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.full((dim,), CLOSED))
        self.bos_id = bos_id

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """x [B, T, dim] of the tokens ids [B, T] -> [B, T, dim]."""
        change = self.gate.sigmoid().to(x.dtype) * (x[:, :-1] - x[:, 1:])
        if self.bos_id is not None:
            change = change.masked_fill((ids[:, 1:] == self.bos_id)[..., None], 0.0)
        return torch.cat([x[:, :1], x[:, 1:] + change], dim=1)
