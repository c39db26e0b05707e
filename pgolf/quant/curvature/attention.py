"""Stock attention written out: what `F.multi_head_attention_forward` computes, in calls that a TorchFunctionMode can follow.

Such a mode is off inside a function that it was told of, and so the products within stay hidden.
"""

from __future__ import annotations

import math
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "multi_head_attention_forward"
_SIGNATURE = signature(F.multi_head_attention_forward)
_RARE = ("bias_k", "bias_v", "add_zero_attn", "static_k", "static_v")


def written_out(args: Any, kwargs: Any) -> tuple[Tensor, Tensor | None] | None:
    """What the function returns for these arguments; None where they ask for something rare, which is not written out."""
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    said = bound.arguments
    if any(said[name] is not None and said[name] is not False for name in _RARE):
        return None
    if said["training"] and said["dropout_p"] > 0:
        return None
    batched = said["query"].dim() == 3
    q, k, v = (x if batched else x.unsqueeze(1) for x in (said["query"], said["key"], said["value"]))
    (tall, batch, width), length, heads = q.shape, k.shape[0], said["num_heads"]
    q, k, v = _projected(said, q, k, v)
    q, k, v = (x.reshape(len(x), batch, heads, width // heads).permute(1, 2, 0, 3) for x in (q, k, v))
    mask = _mask(said, batch, heads, (tall, length), q)
    if said["need_weights"]:
        scores = q @ k.mT / math.sqrt(width // heads)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        mixed = weights @ v
    else:
        causal = said["is_causal"] and said["key_padding_mask"] is None  # torch drops the mask then, too
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if causal else mask, is_causal=causal)
        weights = None
    out = F.linear(
        mixed.permute(2, 0, 1, 3).reshape(tall, batch, width), said["out_proj_weight"], said["out_proj_bias"]
    )
    if weights is not None and said["average_attn_weights"]:
        weights = weights.mean(1)
    if batched:
        return out, weights
    return out.squeeze(1), None if weights is None else weights.squeeze(0)


def _projected(said: dict[str, Any], q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """Queries, keys and values, by one weight [3E, E] or by three."""
    if said["use_separate_proj_weight"]:
        weights = [said[f"{name}_proj_weight"] for name in "qkv"]
    else:
        weights = said["in_proj_weight"].chunk(3)
    biases = [None] * 3 if said["in_proj_bias"] is None else said["in_proj_bias"].chunk(3)
    return [F.linear(x, w, b) for x, w, b in zip((q, k, v), weights, biases, strict=True)]


def _mask(said: dict[str, Any], batch: int, heads: int, shape: tuple[int, int], like: Tensor) -> Tensor | None:
    """What is added to scores [batch, heads, *shape]; booleans say what is left out."""
    mask: Tensor | None = said["attn_mask"]
    padding: Tensor | None = said["key_padding_mask"]
    if mask is not None:
        mask = _added(mask, like)
        mask = mask.reshape(batch, heads, *shape) if mask.dim() == 3 else mask
    if padding is not None:
        padding = _added(padding if padding.dim() == 2 else padding.unsqueeze(0), like)[:, None, None]
        mask = padding if mask is None else mask + padding
    return mask


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.type_as(like)
    return torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill(mask, -math.inf)
