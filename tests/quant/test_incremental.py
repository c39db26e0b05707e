"""Single positions get the logits of a whole pass, or the model is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.quant.curvature import attention
from pgolf.quant.curvature.incremental import Incremental, Plan, observed
from pgolf.quant.curvature.positions import CannotIncrement, odd_length

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
        elif self.how == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", q / 2, k) + torch.full((n, n), -torch.inf).triu(1)
            y = torch.einsum("bhqk,bhkd->bhqd", torch.softmax(scores, -1), v)
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
        if self.how == "head of a flat batch":
            return 5 * torch.tanh(F.linear(self.norm(x).view(-1, D), self.emb.weight).view(*ids.shape, V) / 5)
        return 5 * torch.tanh(F.linear(self.norm(x), self.emb.weight) / 5)


def plan_of(model: nn.Module, rows: int = 3) -> Plan:
    with torch.no_grad():
        return observed(model, torch.randint(V, (rows, T), generator=torch.Generator().manual_seed(1)))


@torch.no_grad()
def difference(model: nn.Module, plan: Plan | None = None, rows: int = 5) -> float:
    """Largest error of the logits of ids of which every position was computed by itself."""
    ids = torch.randint(V, (rows, T), generator=torch.Generator().manual_seed(2))
    incremental = Incremental(model, plan or plan_of(model), rows)
    hidden = torch.zeros_like(ids)  # what comes later is not known
    found = []
    for position in range(T):
        hidden[:, position] = ids[:, position]
        found.append(incremental.logits(hidden, position))
    return float((torch.stack(found, 1) - model(ids)).abs().max())


SHIFT = ["__getitem__"] * 2  # the first of the embeddings, and all but the last
WAYS = ["sdpa", "mask", "written out", "in place", "flattened", "mean of the past", "head of a flat batch", "einsum"]


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("how", WAYS)
def test_agrees_with_whole_passes(how: str, rows: int) -> None:
    model = Model(how)
    assert difference(model, rows=rows) < 1e-5
    assert difference(model, plan_of(model).all_kept(), rows=rows) < 1e-5


def whole(plan: Plan) -> list[str]:
    return [step.name for step in plan.steps if step.choice is None]


def kept(plan: Plan) -> list[str]:
    return [step.name for step in plan.steps if step.whole]


@pytest.mark.parametrize("how", ["sdpa", "mask", "written out", "einsum"])
def test_keys_and_values_alone_are_kept(how: str) -> None:
    plan = plan_of(Model(how))
    assert whole(plan) == SHIFT
    assert kept(plan) == ["embedding", "linear", "cat"]  # shifted, values, rotated keys


def test_products_of_a_flat_batch_are_not_computed_whole() -> None:
    assert whole(plan_of(Model("head of a flat batch"))) == SHIFT


class Layers(nn.Module):
    """PyTorch's own layers."""

    def __init__(self, first: bool = True, weights: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.weights = nn.Embedding(V, D), weights
        layer = nn.TransformerEncoderLayer(D, 2, 12, 0.0, batch_first=first)
        self.first, self.encoder = first, nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.own = nn.MultiheadAttention(D, 2, batch_first=first, kdim=D)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids if self.first else ids.T)
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        x = self.encoder(x, mask=mask, is_causal=True)
        x = x + self.own(x, x, x, attn_mask=mask.isinf(), need_weights=self.weights)[0]
        return F.linear(x if self.first else x.transpose(0, 1), self.emb.weight)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_stock_layers(first: bool, weights: bool) -> None:
    model = Layers(first, weights).eval()
    plan = plan_of(model)
    assert not whole(plan)
    assert difference(model, plan) < 1e-5


@pytest.mark.parametrize("weights", [False, True])
def test_multihead_written_out_is_torchs(weights: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(D, 2)
    x, mask = torch.randn(T, 3, D), torch.ones(T, T, dtype=torch.bool).triu(1)
    seen = []

    def written_out(*args, **kwargs):
        seen.append(attention.written_out(args, kwargs))
        return seen[-1]

    for given in (mask, mask.float() * -1e9, mask.repeat(6, 1, 1)):
        wanted = layer(x, x, x, attn_mask=given, need_weights=weights)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "multi_head_attention_forward", written_out)
            found = layer(x, x, x, attn_mask=given, need_weights=weights)
        assert len(seen) > 0
        assert torch.allclose(found[0], wanted[0], atol=1e-6)
        assert (found[1] is None) == (wanted[1] is None)
        assert found[1] is None or torch.allclose(found[1], wanted[1], atol=1e-6)
    padding = torch.zeros(3, T, dtype=torch.bool)
    padding[1, -2:] = True
    wanted = layer(x, x, x, key_padding_mask=padding, need_weights=weights)
    monkeypatch.setattr(F, "multi_head_attention_forward", written_out)
    assert torch.allclose(layer(x, x, x, key_padding_mask=padding, need_weights=weights)[0], wanted[0], atol=1e-6)
    with pytest.raises(TypeError):  # nothing is written out: the caller has None
        nn.MultiheadAttention(D, 2, add_zero_attn=True)(x, x, x)
    assert seen[-1] is None


def test_a_model_that_looks_ahead_differs() -> None:
    with torch.no_grad():
        assert difference(Model("looks ahead")) > 1e-3


class Unseen(Model):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        with torch._C.DisableTorchFunction():  # as in a compiled extension
            x = x + x.cumsum(1)
        return F.linear(x, self.emb.weight)


def test_what_nobody_sees_needs_all_results_kept() -> None:
    model = Unseen()
    assert difference(model) > 1e-3
    assert difference(model, plan_of(model).all_kept()) < 1e-5


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


class Fewer(Moody):
    def forward(self, ids: Tensor) -> Tensor:
        self.passes += 1
        x = self.emb(ids)
        return F.linear(x.sin() if self.passes == 1 else x, self.emb.weight)


@pytest.mark.parametrize("kind", [Moody, Fewer, Overwriting])
def test_what_cannot_be_followed_is_refused(kind: type[Model]) -> None:
    with pytest.raises(CannotIncrement):
        difference(kind())


def test_odd_length() -> None:
    assert odd_length(8, []) == 9
    assert odd_length(9, [9, 11]) == 13
