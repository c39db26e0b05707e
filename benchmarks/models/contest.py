"""A language model in the contest's shapes, as a contest entrant writes it: plain PyTorch, nothing of pgolf."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rms_norm(x: Tensor) -> Tensor:
    """x [..., D] over its root mean square."""
    return F.rms_norm(x, (x.size(-1),))


class Attention(nn.Module):
    """Causal attention with grouped keys and values, rotated and normalised."""

    def __init__(self, dim: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.gain = nn.Parameter(torch.full((heads,), 1.5))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]; cos, sin [T, head_dim / 2]."""
        B, T, _ = x.shape
        q = rms_norm(self.q(x).view(B, T, self.heads, self.head_dim).transpose(1, 2))
        k = rms_norm(self.k(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2))
        v = self.v(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = (self.rotated(t, cos, sin) for t in (q, k))
        y = F.scaled_dot_product_attention(q * self.gain[:, None, None], k, v, is_causal=True, enable_gqa=True)
        return self.proj(y.transpose(1, 2).reshape(B, T, -1))

    @staticmethod
    def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary position embedding of x [B, H, T, D]."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)


class Block(nn.Module):
    """Attention, then a squared-ReLU MLP, each scaled per channel."""

    def __init__(self, dim: int, heads: int, kv_heads: int, mlp: int) -> None:
        super().__init__()
        self.attn = Attention(dim, heads, kv_heads)
        self.up, self.down = nn.Linear(dim, mlp * dim, bias=False), nn.Linear(mlp * dim, dim, bias=False)
        self.attn_scale, self.mlp_scale = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        x = x + self.attn_scale * self.attn(rms_norm(x), cos, sin)
        return x + self.mlp_scale * self.down(torch.relu(self.up(rms_norm(x))).square())


class GPT(nn.Module):
    """11 layers of width 512, 8 heads over 4 of keys and values, a tied head with a softcap."""

    def __init__(self, vocab: int = 8192, dim: int = 512, layers: int = 11, mlp: int = 4) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(vocab, dim)
        self.blocks = nn.ModuleList(Block(dim, 8, 4, mlp) for _ in range(layers))
        self.frequency = [10000.0 ** (-i / 32) for i in range(32)]

    def forward_logits(self, ids: Tensor) -> Tensor:
        """Ids int64 [B, T] -> logits [B, T, V]."""
        angle = torch.arange(ids.size(1))[:, None] * torch.tensor(self.frequency)
        cos, sin = angle.cos(), angle.sin()
        x = rms_norm(self.tok_emb(ids))
        for block in self.blocks:
            x = block(x, cos, sin)
        return 30.0 * torch.tanh(F.linear(rms_norm(x), self.tok_emb.weight) / 30.0)


class Half(GPT):
    """5 of the layers: half of the weights."""

    def __init__(self) -> None:
        super().__init__(layers=5)
