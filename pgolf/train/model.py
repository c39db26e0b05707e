"""One compact GPT, as the contest's winners build it: the model that `pgolf demo` and `pgolf train` train.

What will surprise you:
* Weights stay float32; every layer casts its weight to the dtype of its input (`compute_dtype`), which the optimizer
  and torch.compile both like.
* Nothing reads or moves the global random state: the weights come from a generator of their own, seeded by `seed`.
* The embedding is tied to the output head, and every residual branch starts at zero.
* U-Net: the first half of the blocks push their input on a stack, the second half pop and add it, each with its own
  learned weights; of an odd number the middle block does neither.

Sources: GQA arXiv 2305.13245, qk-norm arXiv 2302.05442, RoPE arXiv 2104.09864, squared ReLU arXiv 2109.08668, logit
softcap arXiv 2408.00118, U-Net skips KellerJordan/modded-nanogpt; the combination openai/parameter-golf.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.errors import UsageError


@dataclass(frozen=True)
class GPTConfig:
    """Shapes of a `GPT`. rope_dims: rotated dimensions of each head (even); softcap: bound of the logits' magnitude."""

    vocab_size: int
    layers: int
    dim: int
    heads: int
    kv_heads: int
    mlp_mult: int
    rope_dims: int = 16
    rope_base: float = 10000.0
    softcap: float = 30.0

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.heads % self.kv_heads:
            raise UsageError(f"dim {self.dim}, heads {self.heads} and kv_heads {self.kv_heads} must divide in turn")
        if self.rope_dims % 2 or self.rope_dims > self.head_dim:
            raise UsageError(f"rope_dims {self.rope_dims} must be even and at most the head's {self.head_dim}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


PRESETS = {
    "tiny": GPTConfig(vocab_size=1024, layers=2, dim=192, heads=3, kv_heads=1, mlp_mult=3),
    "small": GPTConfig(vocab_size=1024, layers=5, dim=256, heads=4, kv_heads=2, mlp_mult=3),
    "golf": GPTConfig(vocab_size=8192, layers=11, dim=512, heads=8, kv_heads=4, mlp_mult=4),
}


def from_config(config: dict[str, Any], state: Mapping[str, Tensor]) -> GPT:
    """The untrained `GPT` of the "config" entry of a checkpoint that the trainer wrote.

    state: what stands beside it, which bounds the model; a configuration may ask for any size. Raises ValueError for a
    larger one, KeyError and TypeError for what is no configuration, UsageError for shapes that do not fit.
    """
    shapes = GPTConfig(**config["gpt"])
    _check_types(shapes)
    size = shapes.dim * (shapes.vocab_size + shapes.layers * (2 * shapes.dim + 2 * shapes.mlp_mult * shapes.dim))
    held = sum(tensor.numel() for tensor in state.values())
    if size > held or shapes.layers > len(state):
        raise ValueError(
            f"{shapes.layers} layers and at least {size:,} weights, where {len(state)} tensors hold {held:,}"
        )
    return GPT(shapes)


def _check_types(shapes: GPTConfig) -> None:
    """TypeError unless counts are integers, the rest finite numbers, and all above zero; nothing may be rotated."""
    for field in fields(shapes):
        value = getattr(shapes, field.name)
        fits = type(value) is int if field.type == "int" else type(value) in {int, float} and math.isfinite(value)
        if not fits or value < (field.name != "rope_dims"):
            raise TypeError(f"{field.name} is {value!r}")


class Linear(nn.Linear):
    """y = x Wᵀ in the dtype of x; W is float32 and left to `GPT.init_weights`."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Nothing: the parent's draws from the global generator."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def rms_norm(x: Tensor) -> Tensor:
    """x / rms(x) over the last dimension."""
    return F.rms_norm(x, (x.size(-1),))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on the first 2·r dimensions of x [B, T, heads, head_dim]; cos and sin: [1, T, 1, r]."""
    a, b, rest = x.tensor_split((cos.size(-1), 2 * cos.size(-1)), dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin, rest], dim=-1)


class Attention(nn.Module):
    """Causal attention with grouped keys and values, normalised q and k, and a learned gain a head."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.q = Linear(config.dim, config.dim)
        self.k = Linear(config.dim, config.kv_heads * config.head_dim)
        self.v = Linear(config.dim, config.kv_heads * config.head_dim)
        self.proj = Linear(config.dim, config.dim)
        self.gain = nn.Parameter(torch.full((config.heads,), 1.5))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, D = x.shape
        q = rms_norm(self.q(x).view(B, T, self.heads, self.head_dim))
        k = rms_norm(self.k(x).view(B, T, self.kv_heads, self.head_dim))
        v = self.v(x).view(B, T, self.kv_heads, self.head_dim)
        q = rotate(q, cos, sin) * self.gain.to(q.dtype)[:, None]
        k = rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
        )
        return self.proj(y.transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    """LeakyReLU²: a slope of ½ below zero, then squared."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.fc = Linear(config.dim, config.mlp_mult * config.dim)
        self.proj = Linear(config.mlp_mult * config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.leaky_relu(self.fc(x), 0.5).square())


class Block(nn.Module):
    """Attention, then MLP, each on the normalised residual and scaled per channel; `skip` weighs a U-Net skip."""

    def __init__(self, config: GPTConfig, *, skips: bool) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(config), MLP(config)
        self.attn_scale = nn.Parameter(torch.ones(config.dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.dim))
        self.skip = nn.Parameter(torch.ones(config.dim)) if skips else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, skip: Tensor | None) -> Tensor:
        if self.skip is not None and skip is not None:
            x = x + self.skip.to(x.dtype) * skip
        x = x + self.attn_scale.to(x.dtype) * self.attn(rms_norm(x), cos, sin)
        return x + self.mlp_scale.to(x.dtype) * self.mlp(rms_norm(x))


class GPT(nn.Module):
    """A decoder-only transformer; `seed` decides its first weights, `compute_dtype` the dtype of its activations."""

    def __init__(self, config: GPTConfig, *, seed: int = 0, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        self.num_skips = config.layers // 2
        self.tok_emb = nn.Embedding(config.vocab_size, config.dim, _weight=torch.empty(config.vocab_size, config.dim))
        self.blocks = nn.ModuleList(
            Block(config, skips=layer >= config.layers - self.num_skips) for layer in range(config.layers)
        )
        half = config.rope_dims // 2
        frequency = config.rope_base ** -(torch.arange(half) / half)
        self.register_buffer("frequency", frequency, persistent=False)
        self.init_weights(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Embedding N(0, 0.02²); matrices that read the residual N(0, 1/fan_in); matrices that write to it zero."""
        self.tok_emb.weight.normal_(0.0, 0.02, generator=generator)
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                std = 0.0 if name.endswith("proj") else module.in_features**-0.5
                module.weight.normal_(0.0, std, generator=generator)

    def forward_logits(self, ids: Tensor) -> Tensor:
        """ids: int64 [B, T] -> logits: float32 [B, T, V]."""
        hidden = self.forward_hidden(ids)
        logits = F.linear(hidden, self.tok_emb.weight.to(hidden.dtype)).float()
        return self.config.softcap * torch.tanh(logits / self.config.softcap)

    def forward_hidden(self, ids: Tensor) -> Tensor:
        """ids: int64 [B, T] -> what the head multiplies: [B, T, dim] of compute_dtype."""
        angle = torch.arange(ids.size(1), device=ids.device)[:, None] * self.frequency
        cos = angle.cos().to(self.compute_dtype)[None, :, None]
        sin = angle.sin().to(self.compute_dtype)[None, :, None]
        x = rms_norm(self.tok_emb(ids)).to(self.compute_dtype)
        skips: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            if layer < self.num_skips:
                skips.append(x)
            x = block(x, cos, sin, skips.pop() if block.skip is not None else None)
        return rms_norm(x)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of targets int64 [B, T], in nats a token."""
        return F.cross_entropy(self.forward_logits(ids).flatten(0, 1), targets.flatten())
