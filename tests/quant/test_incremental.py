"""Spans of positions get the logits of a whole pass, or the model is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.quant.curvature.incremental import CannotIncrement, Incremental, odd_length

V, D, T = 13, 8, 21


class Model(nn.Module):
    """Attention with rotary positions, a token shift, an MLP; `how` says in which of several ways it is written."""

    def __init__(self, how: str = "sdpa") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.emb = nn.Embedding(V, D)
        self.qkv, self.o, self.up, self.down = nn.Linear(D, 3 * D), nn.Linear(D, D), nn.Linear(D, 12), nn.Linear(12, D)
        self.norm = nn.LayerNorm(D)

    def attend(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        q, k, v = self.qkv(x).view(-1, n, 2, 12).transpose(1, 2).split(4, -1)
        angle = torch.arange(n)[:, None] / torch.tensor([1.0, 10.0])
        q, k = (torch.cat([t[..., :2] * angle.cos() - t[..., 2:] * angle.sin(), t[..., 2:]], -1) for t in (q, k))
        if self.how == "written out":
            mask = torch.ones(n, n, dtype=torch.bool).tril()
            y = (q @ k.mT / 2).masked_fill(~mask, -torch.inf).softmax(-1) @ v
        elif self.how == "mask":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(n, n, dtype=torch.bool).tril())
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.how != "looks ahead")
        return self.o(y.transpose(1, 2).reshape(-1, n, D))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        x = x + 0.5 * torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        if self.how == "in place":
            x += self.attend(self.norm(x))
            x.mul_(0.7)
        elif self.how == "flattened":
            x = x + self.attend(F.linear(x.flatten(0, 1), torch.eye(D)).view(x.shape))
        else:
            x = x + self.attend(self.norm(x))
        if self.how == "mean of the past":
            x = x + x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        x = x + self.down(self.up(x).relu().square())
        return 5 * torch.tanh(F.linear(self.norm(x), self.emb.weight) / 5)


@torch.no_grad()
def difference(model: Model) -> tuple[float, Incremental]:
    """Largest error after the second half of the ids was replaced, one position or a few at a time."""
    generator = torch.Generator().manual_seed(1)
    ids, other = (torch.randint(V, (3, T), generator=generator) for _ in range(2))
    other[:, :10] = ids[:, :10]
    incremental = Incremental(model, T)
    incremental.logits(other)
    for start, stop in ((10, 11), (11, 12), (12, 15), (15, T)):
        found = incremental.logits(ids, start, stop)
    return float((found - model(ids)).abs().max()), incremental


@pytest.mark.parametrize("how", ["sdpa", "mask", "written out", "in place", "flattened", "mean of the past"])
def test_agrees_with_whole_passes(how: str) -> None:
    error, incremental = difference(Model(how))
    assert error < 1e-5
    assert incremental.num_bytes > 0


def test_products_are_not_computed_whole() -> None:
    _, incremental = difference(Model())
    reused = [name for name, kept, _ in incremental._kept if kept is not None]
    assert reused.count("linear") == 5
    assert "scaled_dot_product_attention" in reused


def test_a_model_that_looks_ahead_differs() -> None:
    assert difference(Model("looks ahead"))[0] > 1e-3


class Moody(Model):
    passes = 0

    def forward(self, ids: Tensor) -> Tensor:
        self.passes += 1
        x = self.emb(ids)
        return F.linear(x if self.passes == 1 else x.sin(), self.emb.weight)


class Overwriting(Model):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        x[:, 1:] = x[:, :-1].clone()
        return F.linear(x, self.emb.weight)


@pytest.mark.parametrize("kind", [Moody, Overwriting])
def test_what_cannot_be_followed_is_refused(kind: type[Model]) -> None:
    with pytest.raises(CannotIncrement):
        difference(kind())


def test_odd_length() -> None:
    assert odd_length(8, []) == 9
    assert odd_length(9, [9, 11]) == 13
