"""Gradients that do not tell the truth: what they hide is found by running the artifact, and paid for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pgolf
from pgolf.fitting import reprice
from pgolf.fitting.inputs import job_of
from pgolf.loading import dense
from pgolf.packer.format import artifact
from tests.helpers import generator

VOCAB, DIM, LAYERS, TOKENS = 96, 32, 3, 32


class Tenth(torch.autograd.Function):
    """What scales gradients for the optimizer's sake."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 0.1 * g


class Net(nn.Module):
    """A table, layers and a head of its own; trick: where gradients are not those of the loss."""

    def __init__(self, trick=""):
        super().__init__()
        self.trick = trick
        self.e = nn.Embedding(VOCAB, DIM)
        self.layers = nn.ModuleList(nn.Linear(DIM, DIM, bias=False) for _ in range(LAYERS))
        self.head = nn.Linear(DIM, VOCAB, bias=False)
        for seed, p in enumerate(self.parameters()):
            p.data = torch.randn(p.shape, generator=generator(seed)) * (p.shape[-1] ** -0.5 if seed else 1.0)

    def forward(self, ids):
        x = self.e(ids)
        if self.trick == "shrunk table":
            x = 0.1 * x + 0.9 * x.detach()
        for layer in self.layers:
            x = x + torch.tanh(layer(F.layer_norm(x, (DIM,))))
        if self.trick == "scaled":
            x = Tenth.apply(x)
        return self.head(F.layer_norm(x, (DIM,)))


def text(seed, rows=64):
    return torch.randint(VOCAB, (rows, TOKENS), generator=generator(seed))


def packed(trick, **how):
    model = Net(trick).eval()
    curvature = pgolf.calibrate(model, text(20))
    return pgolf.pack(model, None, curvature=curvature, text=text(21, 256), **({"budget": 4600} | how))


@torch.no_grad()
def kl(report):
    """On text that nobody saw."""
    before, after = Net().eval(), Net().eval()
    after.load_state_dict(dense.tensors_of(artifact.decode(report.data)[0]))
    p, q = (model(text(22)).log_softmax(-1) for model in (before, after))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.fixture(scope="module")
def honest():
    return packed("")


def test_nothing_is_priced_anew_where_all_is_as_foreseen(honest):
    assert not any("measured:" in note for note in honest.notes)


@pytest.mark.parametrize(
    ("trick", "kinds"), [("shrunk table", ["e.weight"]), ("scaled", ["layers.*.weight", "e.weight"])]
)
def test_hidden_worth_is_found_and_paid_for(trick, kinds, honest, monkeypatch):
    mended = packed(trick)
    (note,) = [note for note in mended.notes if "measured:" in note]
    assert all(f"{kind} × " in note for kind in kinds)
    assert "head" not in note
    assert len(mended.data) <= 4600
    assert mended.measured.kl < 2 * mended.loss_rise
    assert not mended.measured.culprits
    monkeypatch.setattr(reprice, "ROUNDS", 0)
    blind = packed(trick)
    assert kl(blind) > 1.5 * kl(mended)
    assert kl(mended) < 1.3 * kl(honest)


@pytest.mark.parametrize("how", [{"budget": None, "bits": 3.0}, {"tune": 3000}])
def test_other_goals_and_the_closed_loop_go_on_from_there(how):
    report = packed("shrunk table", **how)
    assert any("e.weight × " in note for note in report.notes)
    assert report.measured.kl < 2 * report.loss_rise
    if "bits" in how:
        assert report.bits_per_weight <= 3.0


def test_no_time_no_questions():
    report = packed("shrunk table", deadline=0.5)
    assert not any("measured:" in note for note in report.notes)
    assert reprice.Patience(rounding=5.0).lasts(10, 1.0)


def test_kinds_are_few():
    state = {f"layer{k % 40}x.{k}.weight": torch.randn(48, 48, generator=generator(k)) for k in range(80)}
    job = job_of(state, search=True)
    groups = reprice._kinds(job)
    assert len(groups) == reprice.MOST_KINDS
    assert sorted(name for names in groups.values() for name in names) == sorted(state)
