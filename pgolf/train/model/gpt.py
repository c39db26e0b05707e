"""One compact GPT, as the contest's winners build it: the model that `pgolf demo` and `pgolf train` train.

Sources: GQA arXiv 2305.13245, qk-norm arXiv 2302.05442, RoPE arXiv 2104.09864, squared ReLU arXiv 2109.08668, logit
softcap arXiv 2408.00118, U-Net skips KellerJordan/modded-nanogpt; the combination openai/parameter-golf.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.train.model.config import PRESETS, GPTConfig
from pgolf.train.model.parts.bigram import BigramHash
from pgolf.train.model.parts.gate import HeadGate
from pgolf.train.model.parts.lanes import Merge, Routes
from pgolf.train.model.parts.linear import Linear, rms_norm
from pgolf.train.model.parts.loop import SecondPass, route
from pgolf.train.model.parts.mlp import MLP
from pgolf.train.model.parts.residual import ResidualMix
from pgolf.train.model.parts.smear import SmearGate
from pgolf.train.model.parts.spectrum import power_law
from pgolf.train.model.parts.values import ValueMix
from pgolf.train.model.parts.xsa import without_own_value

__all__ = ["GPT", "PRESETS", "GPTConfig", "rotate", "untrained"]


def untrained(config: dict[str, Any], state: Mapping[str, Tensor]) -> GPT:
    """The untrained `GPT` of the "config" entry of a checkpoint that the trainer wrote.

    state: what stands beside it, which bounds the model; a configuration may ask for any size. Raises ValueError for a
    larger one, KeyError and TypeError for what is no configuration, UsageError for shapes that do not fit.
    """
    shapes = GPTConfig.checked(config["gpt"])
    held = sum(tensor.numel() for tensor in state.values())
    if shapes.least_weights > held or shapes.layers > len(state):
        raise ValueError(
            f"{shapes.layers} layers and at least {shapes.least_weights:,} weights, where {len(state)} tensors hold {held:,}"
        )
    model = GPT(shapes)
    model.looped = config.get("looped", True)
    return model


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on the first 2·r dimensions of x [B, T, heads, head_dim]; cos and sin: [1, T, 1, r]."""
    a, b, rest = x.tensor_split((cos.size(-1), 2 * cos.size(-1)), dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin, rest], dim=-1)


class Shared(NamedTuple):
    """What all blocks see: RoPE's cos and sin [1, T, 1, r], the embedding x0 [B, T, dim], the first layer's values
    [B, T, kv_heads, head_dim] once it has run.
    """

    cos: Tensor
    sin: Tensor
    x0: Tensor
    values: Tensor | None = None


class Attention(nn.Module):
    """Causal attention with grouped keys and values, normalised q and k, and a learned gain a head."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.q = Linear(config.dim, config.dim)
        self.k = Linear(config.dim, config.kv_heads * config.head_dim)
        self.v = Linear(config.dim, config.kv_heads * config.head_dim)
        self.proj = Linear(config.dim, config.dim, zero=True)
        self.gain = nn.Parameter(torch.full((config.heads,), 1.5))
        self.exclusive = layer >= config.layers - config.xsa
        self.value_mix = ValueMix(config.kv_heads) if config.value_residual and layer else None
        self.gate = HeadGate(config.attn_gate, config.heads) if config.attn_gate else None

    def forward(self, x: Tensor, shared: Shared) -> tuple[Tensor, Tensor]:
        """x [B, T, dim] -> the output [B, T, dim] and the layer's values [B, T, kv_heads, head_dim]."""
        B, T, _ = x.shape
        q = rms_norm(self.q(x).view(B, T, self.heads, self.head_dim))
        k = rms_norm(self.k(x).view(B, T, self.kv_heads, self.head_dim))
        v = self.v(x).view(B, T, self.kv_heads, self.head_dim)
        if self.value_mix is not None and shared.values is not None:
            v = self.value_mix(v, shared.values)
        q = rotate(q, shared.cos, shared.sin) * self.gain.to(q.dtype)[:, None]
        k = rotate(k, shared.cos, shared.sin)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
        ).transpose(1, 2)
        if self.exclusive:
            y = without_own_value(y, v)
        if self.gate is not None:
            y = self.gate(y, x)
        return self.proj(y.flatten(2)), v


class TransformerBlock(nn.Module):
    """Attention, then MLP, each on the normalised residual and scaled per channel; `skip` weighs a U-Net skip."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(config, layer), MLP(config.dim, config.mlp_mult)
        self.attn_scale = nn.Parameter(torch.ones(config.dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.dim))
        pops = layer >= config.layers - config.layers // 2
        self.skip = nn.Parameter(torch.ones(config.dim)) if pops else None
        self.mix = ResidualMix(config.dim, layer / max(config.layers - 1, 1)) if config.resid_mix else None
        self.again: SecondPass | None = None
        if layer in config.looped:
            untied = layer - config.looped[0] < config.loop_untied
            self.again = SecondPass(config.dim, config.mlp_mult, untied=untied)

    def forward(self, x: Tensor, shared: Shared, skip: Tensor | None, again: bool = False) -> tuple[Tensor, Tensor]:
        """The residual x [B, T, dim] -> the residual and the layer's values; again: this is the second pass."""
        x = self._entered(x, shared, skip)
        y, values = self._attended(x, shared, again)
        x = x + y
        return x + self._through_mlp(x, again), values

    def _entered(self, x: Tensor, shared: Shared, skip: Tensor | None) -> Tensor:
        if self.mix is not None:
            x = self.mix(x, shared.x0)
        return x if self.skip is None or skip is None else x + self.skip.to(x.dtype) * skip

    def _attended(self, x: Tensor, shared: Shared, again: bool) -> tuple[Tensor, Tensor]:
        own = self.again if again else None
        scale = self.attn_scale if own is None else own.attn_scale
        y, values = self.attn(rms_norm(x), shared)
        return scale.to(x.dtype) * y, values

    def _through_mlp(self, x: Tensor, again: bool) -> Tensor:
        own = self.again if again else None
        scale = self.mlp_scale if own is None else own.mlp_scale
        mlp = self.mlp if own is None or own.mlp is None else own.mlp
        y: Tensor = mlp(rms_norm(x))
        return scale.to(x.dtype) * y


class LaneBlock(TransformerBlock):
    """Attention on the first of two residual lanes, which the skip joins, and the MLP on the second, side by side."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.routes = Routes()

    def forward(self, x: Tensor, shared: Shared, skip: Tensor | None, again: bool = False) -> tuple[Tensor, Tensor]:
        """The lanes x [2, B, T, dim] -> the lanes and the layer's values."""
        first = self._entered(x[0], shared, skip)
        y, values = self._attended(first, shared, again)
        return self.routes(torch.stack([first, x[1]]), y, self._through_mlp(x[1], again)), values


class GPT(nn.Module):
    """A decoder-only transformer whose embedding is also its head, and whose residual branches start at zero.

    U-Net: the first half of the blocks push their input on a stack, the second half pop and add it, each with its own
    learned weights; of an odd number the middle block does neither. Options (see `GPTConfig`) are parts beside this that
    do not exist when they are off: a model without them has the parameters, and draws the first weights, that it always
    had. seed: decides the first weights, by a generator of their own. compute_dtype: of the activations; weights stay
    float32, and every layer casts its own, which the optimizer and torch.compile both like.
    looped: whether the loop of a configuration that has one is on; the trainer switches it on late.
    """

    frequency: Tensor

    def __init__(self, config: GPTConfig, *, seed: int = 0, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.compute_dtype, self.looped = config, compute_dtype, True
        self.num_skips = config.layers // 2
        self.tok_emb = nn.Embedding(config.vocab_size, config.dim, _weight=torch.empty(config.vocab_size, config.dim))
        self.bigram: BigramHash | None = None
        if config.bigram_buckets:
            self.bigram = BigramHash(
                config.vocab_size, config.bigram_buckets, config.bigram_dim, config.dim, config.bos_id
            )
        self.smear = SmearGate(config.dim, config.bos_id) if config.smear else None
        self.first_lane = config.layers - config.lanes
        kinds = [TransformerBlock] * self.first_lane + [LaneBlock] * config.lanes
        self.blocks = nn.ModuleList(kind(config, layer) for layer, kind in enumerate(kinds))
        self.merge = Merge() if config.lanes else None
        half = config.rope_dims // 2
        frequency = config.rope_base ** -(torch.arange(half) / half)
        self.register_buffer("frequency", frequency, persistent=False)
        self.init_weights(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Embedding N(0, 0.02²); matrices that read the residual N(0, 1/fan_in); matrices that write to it zero."""
        self.tok_emb.weight.normal_(0.0, 0.02, generator=generator)
        if self.config.spectral:
            self.tok_emb.weight.copy_(power_law(self.tok_emb.weight, self.config.spectral))
        for module in self.modules():
            if isinstance(module, Linear):
                std = 0.0 if module.zero else module.in_features**-0.5
                module.weight.normal_(0.0, std, generator=generator)

    def forward_logits(self, ids: Tensor) -> Tensor:
        """ids: int64 [B, T] -> logits: float32 [B, T, V]."""
        hidden = self.forward_hidden(ids)
        logits = F.linear(hidden, self.tok_emb.weight.to(hidden.dtype)).float()
        return self.config.softcap * torch.tanh(logits / self.config.softcap)

    def head(self) -> tuple[Tensor, float]:
        """(weight [V, dim], softcap): logits are softcap · tanh(hidden @ weightᵀ / softcap)."""
        return self.tok_emb.weight, self.config.softcap

    def forward_hidden(self, ids: Tensor) -> Tensor:
        """ids: int64 [B, T] -> what the head multiplies: [B, T, dim] of compute_dtype."""
        angle = torch.arange(ids.size(1), device=ids.device)[:, None] * self.frequency
        cos = angle.cos().to(self.compute_dtype)[None, :, None]
        sin = angle.sin().to(self.compute_dtype)[None, :, None]
        x = self.embed(ids)
        shared = Shared(cos, sin, x)
        skips: list[Tensor] = []
        for layer, again in route(self.config.layers, self.config.looped if self.looped else range(0)):
            if layer == self.first_lane:
                x = torch.stack([x, x])
            if layer < self.num_skips and not again:
                skips.append(x)
            pops = self.blocks[layer].skip is not None and not again
            x, values = self.blocks[layer](x, shared, skips.pop() if pops else None, again)
            if shared.values is None:
                shared = Shared(cos, sin, shared.x0, values)  # not _replace, which torch 2.6 does not trace
        return rms_norm(x if self.merge is None else self.merge(x))

    def embed(self, ids: Tensor) -> Tensor:
        """ids: int64 [B, T] -> the first residual: [B, T, dim] of compute_dtype."""
        x = rms_norm(self.tok_emb(ids)).to(self.compute_dtype)
        if self.bigram is not None:
            x = x + self.bigram(ids, x.dtype)
        return x if self.smear is None else self.smear(x, ids)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of targets int64 [B, T], in nats a token."""
        return F.cross_entropy(self.forward_logits(ids).flatten(0, 1), targets.flatten())
