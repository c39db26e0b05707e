"""Whatever a module does with its weights, each has a price, and a small error of all of them costs what is foreseen."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import pgolf
from pgolf.quant.curvature.loss import loss_rise
from pgolf.quant.slices import matrix_shape
from tests.helpers import generator

VOCAB, DIM, LENGTH = 48, 32, 16
ERROR = 0.02  # of the mean size of a parameter's weights


def weight(*shape, std=None):
    return nn.Parameter(torch.empty(*shape)) if std is None else nn.Parameter(torch.full(shape, float(std)))


class Animal(nn.Module):
    """A residual layer between a table and its transpose; subclasses say what the layer is."""

    def __init__(self):
        super().__init__()
        self.table = weight(VOCAB, DIM, std=1.0)
        self.build()
        g = generator(len(type(self).__name__))
        with torch.no_grad():
            for name, p in sorted(self.named_parameters()):
                std = float(p.mean()) if name == "table" else p.shape[-1] ** -0.5
                p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype) * std + ("norm" in name and "weight" in name))

    def build(self):
        pass

    def looked_up(self, ids):
        return F.embedding(ids, self.table)

    def layer(self, x):
        return torch.zeros_like(x)

    def forward(self, ids):
        x = self.looked_up(ids)
        x = x + self.layer(F.layer_norm(x, (DIM,)))
        return F.linear(F.layer_norm(x, (DIM,)), self.table) / 3


def causal(x):
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)


class Attention(Animal):
    def build(self):
        self.a = nn.MultiheadAttention(DIM, 4, batch_first=True)

    def layer(self, x):
        return self.a(x, x, x, attn_mask=causal(x), need_weights=False)[0]


class Encoder(Animal):
    def build(self):
        self.a = nn.TransformerEncoderLayer(DIM, 4, 64, batch_first=True)

    def layer(self, x):
        return self.a(x, src_mask=causal(x))


class Depthwise(Animal):
    def build(self):
        self.c = nn.Conv1d(DIM, DIM, 4, groups=DIM)

    def layer(self, x):
        return self.c(F.pad(x.mT, (3, 0))).mT


class TransposedConvolution(Animal):
    def build(self):
        self.c = nn.ConvTranspose1d(DIM, DIM, 1)

    def layer(self, x):
        return self.c(x.mT).mT


class Recurrent(Animal):
    def build(self):
        self.r = nn.GRU(DIM, DIM, 2, batch_first=True)

    def layer(self, x):
        return self.r(x)[0]


class Cell(Animal):
    def build(self):
        self.r = nn.LSTMCell(DIM, DIM)

    def layer(self, x):
        state, out = None, []
        for t in range(x.shape[1]):
            state = self.r(x[:, t], state)
            out.append(state[0])
        return torch.stack(out, 1)


class Bilinear(Animal):
    def build(self):
        self.b, self.p = nn.Bilinear(DIM, 8, DIM), nn.Linear(DIM, 8)

    def layer(self, x):
        return self.b(x, self.p(x))


class Normed(Animal):
    def build(self):
        self.l = nn.utils.parametrizations.weight_norm(nn.Linear(DIM, DIM))

    def layer(self, x):
        return self.l(x)


class LowRank(Animal):
    def build(self):
        self.w, self.a, self.b = weight(DIM, DIM), weight(4, DIM), weight(DIM, 4)

    def layer(self, x):
        return F.linear(x, self.w + self.b @ self.a)


class Einsum(Animal):
    def build(self):
        self.w, self.o = weight(4, DIM, 8), weight(4, 8, DIM)

    def layer(self, x):
        return torch.einsum("bthd,hde->bte", torch.einsum("btc,hcd->bthd", x, self.w), self.o)


class Vmapped(Animal):
    def build(self):
        self.w = weight(4, DIM, DIM)

    def layer(self, x):
        return torch.func.vmap(lambda w: torch.tanh(x @ w))(self.w).sum(0)


class Functional(Animal):
    def build(self):
        self.l = nn.Linear(DIM, DIM)

    def layer(self, x):
        return torch.func.functional_call(self.l, {n: 1.5 * p for n, p in self.l.named_parameters()}, x)


class Checkpointed(Animal):
    reentrant = False

    def build(self):
        self.l = nn.Sequential(nn.Linear(DIM, 64), nn.GELU(), nn.Linear(64, DIM))

    def layer(self, x):
        return checkpoint(self.l, x, use_reentrant=self.reentrant)


class Reentrant(Checkpointed):
    reentrant = True


class Kronecker(Animal):
    def build(self):
        self.a, self.b = weight(4, 4), weight(8, 8)

    def layer(self, x):
        return x @ torch.kron(self.a, self.b)


class Generated(Animal):
    def build(self):
        self.w, self.z = nn.Linear(8, DIM * DIM), weight(8)

    def layer(self, x):
        return x @ self.w(self.z).view(DIM, DIM) / 4


class CopiedInPlace(Animal):
    def build(self):
        self.l = nn.Linear(DIM, DIM)

    def layer(self, x):
        return x @ torch.empty(DIM, DIM).copy_(self.l.weight).T + self.l.bias


class Scripted(Animal):
    def build(self):
        self.l = torch.jit.trace(nn.Linear(DIM, DIM), torch.zeros(1, DIM))

    def layer(self, x):
        return self.l(x)


class StateSpace(Animal):
    def build(self):
        self.A, self.B, self.C = weight(DIM, 8), nn.Linear(DIM, 8), nn.Linear(DIM, 8)

    def layer(self, x):
        h, out = torch.zeros(len(x), DIM, 8), []
        for t in range(x.shape[1]):
            now = x[:, t]
            h = torch.exp(-torch.exp(self.A)) * h + now[..., None] * self.B(now)[:, None]
            out.append((h * self.C(now)[:, None]).sum(-1))
        return torch.tanh(torch.stack(out, 1) / 8)


class Indexed(Animal):
    def looked_up(self, ids):
        return self.table[ids] + self.table.index_select(0, ids.flatten()).view(*ids.shape, DIM)


class OneHot(Animal):
    def looked_up(self, ids):
        return F.one_hot(ids, VOCAB).float() @ self.table


class ByFrequency(Animal):
    """What an option of the lookup makes of its gradient is no price of the loss."""

    def build(self):
        self.e = nn.Embedding(VOCAB, DIM, scale_grad_by_freq=True)

    def looked_up(self, ids):
        return self.e(ids)


class Sparse(Animal):
    def build(self):
        self.e = nn.Embedding(VOCAB, DIM, sparse=True)

    def looked_up(self, ids):
        return self.e(ids)


class Bag(Animal):
    by_frequency = False

    def build(self):
        self.e = nn.EmbeddingBag(
            VOCAB, DIM, mode="sum", scale_grad_by_freq=self.by_frequency, sparse=not self.by_frequency
        )

    def looked_up(self, ids):
        return self.e(ids.reshape(-1, 1)).view(*ids.shape, DIM)


class BagByFrequency(Bag):
    by_frequency = True


class Hooked(Animal):
    """Trainers mask, scale and clip gradients by hooks on parameters and modules."""

    def build(self):
        self.w, self.l, self.k = weight(DIM, DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.w.register_hook(lambda g: g * 0.01)
        self.l.register_full_backward_hook(lambda module, inputs, outputs: tuple(0.01 * g for g in inputs))
        self.k.register_full_backward_pre_hook(lambda module, outputs: tuple(0.01 * g for g in outputs))

    def layer(self, x):
        return self.k(self.l(x @ self.w))


ANIMALS = [
    Attention, Encoder, Depthwise, TransposedConvolution, Recurrent, Cell, Bilinear, Normed, LowRank, Einsum, Vmapped, Functional,
    Checkpointed, Reentrant, Kronecker, Generated, CopiedInPlace, Scripted, StateSpace, Indexed, OneHot, ByFrequency, Sparse, Bag,
    BagByFrequency, Hooked,
]  # fmt: skip


def text(seed):
    return torch.randint(VOCAB, (48, LENGTH), generator=generator(seed))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch.jit
@pytest.mark.filterwarnings(
    "ignore:.*nested tensor:UserWarning", "ignore:None of the inputs have requires_grad:UserWarning"
)
@pytest.mark.parametrize("animal", ANIMALS)
def test_every_weight_has_its_price(animal):
    model, held = animal().eval(), text(6)
    curvature = pgolf.calibrate(model, text(5))
    with torch.no_grad():
        before = model(held).log_softmax(-1)
    for name, _ in model.named_parameters():
        known = curvature.matrices(name)
        assert known is not None, name
        assert all(each is not None for each in known), name
    for seed in range(2):
        foreseen, own = 0.0, {name: p.detach().clone() for name, p in model.named_parameters()}
        g = generator(10 + seed)
        with torch.no_grad():
            for name, p in model.named_parameters():
                error = torch.randn(p.shape, generator=g) * ERROR * p.abs().mean()
                p += error
                slices = error.reshape(matrix_shape(tuple(p.shape)))
                foreseen += sum(loss_rise(e, c) for e, c in zip(slices, curvature.matrices(name), strict=True))
            after = model(held).log_softmax(-1)
            for name, p in model.named_parameters():
                p.copy_(own[name])
        kl = float((before.exp().double() * (before - after).double()).sum(-1).mean())
        assert 0.5 * foreseen < kl < 2 * foreseen


def test_hooks_are_back_afterwards():
    model = Hooked()
    pgolf.calibrate(model.eval(), text(5))
    (model.w.sum() + model.l(torch.ones(1, DIM, requires_grad=True)).sum()).backward()
    assert torch.allclose(model.w.grad, torch.full((DIM, DIM), 0.01))
    assert len(model.l._backward_hooks) == len(model.k._backward_pre_hooks) == 1
