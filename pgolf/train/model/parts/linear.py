"""The linear layer of every part: y = x Wᵀ."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """y = x Wᵀ in the dtype of x; W is float32 and left to `GPT.init_weights`, which starts it at zero if `zero`."""

    def __init__(self, in_features: int, out_features: int, *, zero: bool = False) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.zero = zero

    def reset_parameters(self) -> None:
        """Nothing: the parent's draws from the global generator."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def rms_norm(x: Tensor) -> Tensor:
    """x / rms(x) over the last dimension."""
    return F.rms_norm(x, (x.size(-1),))
