"""`F.multi_head_attention_forward` written out in functions that a TorchFunctionMode can see.

Such a mode is off inside a function that it was told of, and so the products within stay hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, zeros_like
from torch.nn import functional as F

NAME = "multi_head_attention_forward"


def written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """[T, N, E] and, where wanted, the weights of attention, as torch documents them; arguments are torch's.

    Raises NotImplementedError for what language models have no use for: batches of one without their dimension, keys
    and values of the layer's own, static ones, padding, dropout.
    """
    unusual: list[Any] = [bias_k, bias_v, static_k, static_v, key_padding_mask]
    if any(a is not None for a in unusual) or add_zero_attn or query.dim() != 3 or (training and dropout_p):
        raise NotImplementedError
    weights: Sequence[Tensor | None] = (q_proj_weight, k_proj_weight, v_proj_weight)
    if not use_separate_proj_weight and in_proj_weight is not None:
        weights = in_proj_weight.chunk(3)
    biases: Sequence[Tensor | None] = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, w, b).reshape(*x.shape[:2], num_heads, -1).permute(1, 2, 0, 3)  # [N, heads, T, head_dim]
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
        if w is not None
    )
    mask = _additive(attn_mask, q, num_heads)
    if not need_weights:
        y = F.scaled_dot_product_attention(q, k, v, None if is_causal else mask, is_causal=is_causal)
        return F.linear(y.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias), None
    logits = q * q.shape[-1] ** -0.5 @ k.mT
    shares = (logits if mask is None else logits + mask).softmax(-1)
    y = F.linear((shares @ v).permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    return y, shares.mean(1) if average_attn_weights else shares


def _additive(mask: Tensor | None, q: Tensor, heads: int) -> Tensor | None:
    """A mask [T, S] or [N·heads, T, S], as float, in the shape that attention takes."""
    if mask is None:
        return None
    if not mask.is_floating_point():
        mask = zeros_like(mask, dtype=q.dtype).masked_fill(mask, -float("inf"))
    return mask.reshape(-1, heads, *mask.shape[1:]) if mask.dim() == 3 else mask
