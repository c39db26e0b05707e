"""Exclusive self-attention: a head's output without what it took from the token's own value.

Source: arXiv 2603.09078; on the last layers alone and grouped by key-value head, openai/parameter-golf #265.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def without_own_value(y: Tensor, v: Tensor) -> Tensor:
    """y [B, T, heads, d] less its projection on the token's value v [B, T, kv_heads, d], each head on its group's.

    The heads of a group are seen through a view, so that no value is repeated in memory.
    """
    grouped = torch.unflatten(y, 2, (v.size(2), -1))
    own = F.normalize(v, dim=-1).unsqueeze(3)
    rest: Tensor = grouped - (grouped * own).sum(-1, keepdim=True) * own
    return rest.flatten(2, 3)
