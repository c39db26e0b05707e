"""What becomes of a small tensor is a matter of bytes against nats, not of its size."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pgolf
from pgolf.fitting import market, plan
from pgolf.fitting.inputs import job_of
from pgolf.loading import dense
from pgolf.packer.format import artifact
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.methods.auto import UNIT
from tests.helpers import generator

VOCAB, DIM, HEADS = 64, 64, 24


class Heads(nn.Module):
    """Gains and biases as vectors, a bank of gates, and heads of 8x64, each a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        g = generator(3)

        def weight(*shape: int, scale: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=g) * scale)

        self.table = weight(VOCAB, DIM)
        self.heads = nn.ParameterList(weight(8, DIM, scale=DIM**-0.5) for _ in range(HEADS))
        self.gates = weight(HEADS // 8, DIM, 4, scale=DIM**-0.5)
        self.gain = nn.Parameter(1 + 0.2 * torch.randn(DIM, generator=g))
        self.unused = nn.Parameter(torch.ones(DIM))

    def forward(self, ids: Tensor) -> Tensor:
        x = F.embedding(ids, self.table) * self.gain
        for i, gate in enumerate(self.gates):
            y = torch.cat([F.linear(torch.tanh(x), w) for w in self.heads[8 * i : 8 * i + 8]], dim=-1)
            x = x + y * torch.sigmoid(x @ gate).mean(-1, keepdim=True)
        return F.linear(x, self.table) / 8


@pytest.fixture(scope="module")
def heads():
    ids = torch.randint(0, VOCAB, (32, 64), generator=generator(0))
    return Heads(), pgolf.calibrate(Heads(), ids)


def test_the_price_is_the_slope_of_the_water_level():
    weights, level = 1000, UNIT * 3.0
    finer = (level / 2) ** 2 / 24 - level**2 / 24  # of a weight, for one bit more
    price = math.log(2) * level**2 / 12
    assert -finer / price == pytest.approx(0.75 / (2 * math.log(2)))  # the mean slope over a whole bit
    stall = market.Stall((market.Form(None, 5000.0, 0.0),), weights, 1, 1.0)
    assert stall.best(5000.0 - market.PLANE_BITS, 3.0) is not None
    assert stall.best(3000.0, 3.0) is None


def test_larger_steps_never_choose_more_bits():
    forms = tuple(
        market.Form(c, b, r) for c, b, r in ((None, 9000, 0), ("float16", 5500, 1e-8), ("bfloat16", 3900, 4e-7))
    )
    stall = market.Stall(forms, 500, 1, 1.0)

    def bits(step: float) -> float:
        codes = 500 * max(8 - math.log2(step), 0.0)
        form = stall.best(codes, step)
        return codes if form is None else form.bits

    taken = [bits(2 ** (k / 4)) for k in range(-40, 40)]
    assert taken == sorted(taken, reverse=True)
    assert len(set(taken)) > 4


def test_a_cast_is_priced_and_one_that_overflows_is_no_choice():
    curvature = [MatrixCurvature(torch.ones(1, 1), torch.full((3,), 2.0))]
    stall = market.stall_of(torch.tensor([1.0, 1e6, 1 / 3]), curvature)
    assert [form.cast for form in stall.forms] == [None, "bfloat16"]
    error = torch.tensor([1.0, 1e6, 1 / 3]).bfloat16().float() - torch.tensor([1.0, 1e6, 1 / 3])
    assert stall.forms[1].rise == pytest.approx(float(error.square().sum()), rel=1e-4)


def test_vectors_have_a_price(heads):
    model, curvature = heads
    (known,) = curvature.matrices("gain")
    assert (known.H.shape, known.G.shape) == ((1, 1), (DIM,))
    assert float(known.G.min()) > 0
    assert curvature.get("unused") is None
    plans = job_of(model, curvature, search=True).plans
    assert plans["gain"].market
    assert plans["heads.0"].market
    assert (plans["unused"].settings, plans["unused"].cast, plans["unused"].kept) == (None, "float16", "a vector")


def test_the_price_of_a_vector_is_what_errors_cost(heads):
    model, curvature = heads
    (known,) = curvature.matrices("gain")
    ids = torch.randint(0, VOCAB, (16, 64), generator=generator(7))
    with torch.no_grad():
        before = model(ids).log_softmax(-1)
        right = model.gain.clone()
        total = 0.0
        for k in range(8):
            error = 0.03 * torch.randn(DIM, generator=generator(20 + k))
            model.gain.copy_(right + error)
            total += float((before.exp() * (before - model(ids).log_softmax(-1))).sum(-1).mean())
            total -= 0.5 * float((known.G * error.square()).sum()) * 1.0
        model.gain.copy_(right)
    mean = 8 * 0.5 * 0.03**2 * float(known.G.sum())
    assert abs(total) < 0.4 * mean


def test_small_heads_take_about_as_many_bits_as_one_matrix(heads):
    model, curvature = heads
    report = pgolf.pack(model, None, budget=8000, curvature=curvature)
    rows = {row.name: row for row in report.rows}
    small = [row for row in report.rows if row.name.startswith("heads.")]
    assert all(row.error is not None for row in small)
    bits = [row.bits_per_weight for row in small]
    assert max(bits) < 5
    assert rows["table"].bits_per_weight < 6
    state = dense.tensors_of(artifact.decode(report.data)[0])
    assert {name: t.shape for name, t in state.items()} == {n: p.shape for n, p in model.state_dict().items()}


def test_a_generous_budget_keeps_gains_and_a_tight_one_does_not(heads):
    model, curvature = heads
    wide, tight = (pgolf.pack(model, None, budget=size, curvature=curvature) for size in (30000, 5000))
    gains = [next(row for row in report.rows if row.name == "gain") for report in (wide, tight)]
    assert gains[0].num_bytes > 1.2 * gains[1].num_bytes
    assert wide.loss_rise < tight.loss_rise / 20


def test_a_rule_that_names_a_small_tensor_is_carried_out():
    tensors = {"head": torch.randn(8, 64), "gain": torch.ones(64), "w": torch.randn(64, 64)}

    def made(*rules, method="auto"):
        return plan.make(tensors, method=method, rules=[plan.parse_rule(r) for r in rules])

    assert made("head=int4")["head"].settings is not None
    assert made("h*=step=2", method="rtn")["head"].settings is not None
    assert made("*=step=2")["head"].settings is None
    assert made("gain=step=2")["gain"].settings is not None
    assert made("g*=step=2")["gain"].settings is None  # a pattern for matrices takes no vector along
    assert made("gain=int4", method="sdclip")["gain"].kept == "a vector"
