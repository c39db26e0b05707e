"""Modules that want to be called in other ways than most, or that change while they run: the same curvature as the plain one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import pgolf
from pgolf.errors import CurvatureError, ModelError
from pgolf.models.logits import logits_of
from pgolf.quant.curvature.selftext import self_generate
from tests.helpers import generator

VOCABULARY, WIDTH, LENGTH = 64, 32, 32
IDS = torch.randint(0, VOCABULARY, (4, LENGTH), generator=generator())


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.up = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        g = generator()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.2)

    def inner(self, x: Tensor) -> Tensor:
        return self.up(x)

    def scores(self, ids: Tensor) -> Tensor:
        x = self.wte(ids)
        return self.head(x + torch.relu(self.inner(x)))

    def forward(self, ids: Tensor) -> Any:
        return self.scores(ids)


def mine(**methods: Any) -> Plain:
    return type("Mine", (Plain,), methods)()


def alone(self: Plain, ids: Tensor) -> Tensor:
    assert len(ids) == 1
    return self.scores(ids)


def flat(self: Plain, ids: Tensor) -> Tensor:
    assert ids.dim() == 1
    return self.scores(ids[None])[0]


def flat_loss(self: Plain, input_seq: Tensor, target_seq: Tensor) -> Tensor:
    """As modded-nanogpt's: whole batches of one sequence, blocks of 16."""
    assert input_seq.dim() == 1
    assert len(input_seq) % 16 == 0
    return F.cross_entropy(self.scores(input_seq[None]).view(-1, VOCABULARY), target_seq)


def masked(self: Plain, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    return self.scores(input_ids * attention_mask)


def placed(self: Plain, input_ids: Tensor, *, position_ids: Tensor, attention_mask: Tensor) -> Tensor:
    assert torch.equal(position_ids, torch.arange(input_ids.shape[1]).expand_as(input_ids))
    return self.scores(input_ids * attention_mask)


def taught(self: Plain, input_ids: Tensor, labels: Tensor, attention_mask: Tensor) -> Any:
    scores = self.scores(input_ids * attention_mask)
    return F.cross_entropy(scores.view(-1, VOCABULARY), labels.view(-1))


def of_24(self: Plain, ids: Tensor) -> Tensor:
    assert ids.shape[1] % 24 == 0
    return self.scores(ids)


def of_48_alone(self: Plain, ids: Tensor) -> Tensor:
    assert ids.shape[1] == 48
    return self.scores(ids)


CALLED: dict[str, Callable[..., Any]] = {
    "one sequence at a time": alone,
    "without a batch": flat,
    "a loss of one sequence": flat_loss,
    "with a mask": masked,
    "with positions": placed,
    "with a mask and labels": taught,
}


@pytest.mark.parametrize("kind", CALLED)
def test_the_same_logits_and_curvature_as_the_plain_one(kind):
    module, wanted = mine(forward=CALLED[kind]), Plain()
    found = logits_of(module)(IDS)
    assert torch.allclose(found, wanted(IDS), atol=1e-6)
    mine_, theirs = (pgolf.calibrate(m, [IDS]) for m in (module, wanted))
    for name in ("up.weight", "head.weight", "wte.weight"):
        (a,), (b,) = mine_.matrices(name), theirs.matrices(name)
        assert torch.allclose(a.H, b.H, rtol=1e-4, atol=1e-7), name
        assert mine_.coverage[name] == "traced"


@pytest.mark.parametrize("forward", [of_24, of_48_alone])
def test_lengths_of_three(forward):
    module = mine(forward=forward)
    assert torch.allclose(logits_of(module)(IDS), Plain()(IDS), atol=1e-6)
    ids = torch.randint(0, VOCABULARY, (4, 48), generator=generator())
    (a,), (b,) = (pgolf.calibrate(m, [ids]).matrices("up.weight") for m in (module, Plain()))
    assert torch.allclose(a.H, b.H, rtol=1e-4, atol=1e-7)
    assert self_generate(module, sequences=2, length=20).shape == (2, 20)


@pytest.mark.parametrize("kind", ["one sequence at a time", "without a batch"])
def test_such_a_model_writes_its_own_text(kind):
    ids = self_generate(mine(forward=CALLED[kind]), sequences=3, length=15)
    assert ids.shape == (3, 15)
    assert len(torch.unique(ids)) > 5


def test_tokens_beyond_the_table_are_still_named():
    with pytest.raises(CurvatureError, match="token 64 lies outside the model's vocabulary of 64"):
        logits_of(mine(forward=flat))(IDS + 1)


REFUSED = {
    "a mask of another name": (lambda s, ids, pad_mask: s.scores(ids), ModelError, "wants more than token ids"),
    "fails whatever it is given": (lambda s, ids: s.scores(ids) + None, CurvatureError, "unsupported operand"),
    "inference mode": (
        torch.inference_mode()(lambda s, ids: s.scores(ids)), CurvatureError, "under torch.inference_mode by itself",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_the_first_way_that_failed_is_told(kind):
    forward, error, says = REFUSED[kind]
    with pytest.raises(error, match=says):
        pgolf.calibrate(mine(forward=forward), [IDS])


# ---- torch.func

INSIDE = {
    "vmap": lambda s, x: torch.vmap(lambda row: F.linear(row, s.up.weight, s.up.bias))(x),
    "vmap over weights": lambda s, x: torch.vmap(lambda w, b: x @ w + b)(s.up.weight, s.up.bias).movedim(0, -1),
    "functional_call": lambda s, x: functional_call(s.up, dict(s.up.named_parameters()), (x,)),
    "functional_call, scaled": lambda s, x: functional_call(
        s.up, {name: 2 * p for name, p in s.up.named_parameters()}, (x,)
    ),
}


@pytest.mark.parametrize("kind", INSIDE)
def test_transforms_of_torch_func(kind, tmp_path):
    module = mine(inner=INSIDE[kind])
    curvature = pgolf.calibrate(module, [IDS])
    assert curvature.matrices("up.weight") is not None
    assert curvature.coverage["head.weight"] == "traced"
    pgolf.pack(module, tmp_path / "m.pgolf", budget=9000, curvature=curvature)
    assert (pgolf.load(tmp_path / "m.pgolf")["up.weight"] - module.up.weight).abs().max() < 0.05


# ---- what changes while a model runs


class Counting(Plain):
    """Counts in place, averages by assignment, and caches what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("cache", None, persistent=False)

    def inner(self, x: Tensor) -> Tensor:
        self.seen += x[..., 0].numel()
        self.mean = 0.9 * self.mean + 0.1 * x.detach().flatten(0, -2).mean(0)
        self.cache = x.detach()
        return self.up(x)


def test_buffers_are_as_they_were():
    module = Counting()
    seen = module.seen
    module(IDS)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    pgolf.calibrate(module, [IDS])
    self_generate(module, sequences=2, length=9)
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert module.seen is seen
    assert int(seen) == IDS.numel()
    module(IDS)
    assert int(module.seen) == 2 * IDS.numel(), "it goes on counting"
