"""Sampled text: exact for any model, and on its distribution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.errors import CurvatureError, ModelError
from pgolf.quant.curvature import selftext
from pgolf.quant.curvature.incremental import Plan
from pgolf.quant.curvature.selftext import random_tokens, self_generate
from tests.quant.test_incremental import Model, Moody, V


def test_same_text_as_whole_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = self_generate(Model(), sequences=5, length=12, seed=3)
    monkeypatch.setattr(selftext, "_plan", lambda *args: None)
    slow = self_generate(Model(), sequences=5, length=12, seed=3)
    assert fast.shape == (5, 12)
    assert (fast == slow).float().mean() > 0.9  # the same draws but for rounding


class Late(Model):
    """Reads, where no function mode sees it, what was TRIED and more positions ago."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        with torch._C.DisableTorchFunction():
            x = torch.cat([x[:, : selftext.TRIED], x[:, selftext.TRIED :] - x[:, : -selftext.TRIED]], 1)
        return F.linear(x, self.emb.weight)


def test_what_goes_wrong_late_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    whole = selftext._whole
    monkeypatch.setattr(selftext, "_whole", lambda run, ids, at: passes.append(len(ids)) or whole(run, ids, at))
    monkeypatch.setattr(Plan, "all_kept", lambda plan: plan)
    self_generate(Late(), sequences=3, length=31)
    assert passes == [3] * 30


@pytest.mark.parametrize("kind", [lambda: Model("looks ahead"), Moody])
def test_models_that_need_whole_passes(kind) -> None:
    assert self_generate(kind(), sequences=2, length=6).shape == (2, 6)


def test_groups_and_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftext, "KEPT_BYTES", 1)
    told: list[tuple[int, int]] = []
    ids = self_generate(Model(), sequences=3, length=7, progress=lambda *args: told.append(args))
    assert [done for done, _ in told] == [2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21]
    assert {total for _, total in told} == {21}
    assert ids.shape == (3, 7)


class Pairs(nn.Module):
    """The next token is drawn from a table of the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 4)
        self.table.weight.data = 2 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


def test_follows_the_model_at_its_temperature() -> None:
    model = Pairs()
    ids = self_generate(model, sequences=200, length=51, temperature=0.8)
    counts = torch.zeros(4, 4).index_put_(
        (ids[:, :-1].flatten(), ids[:, 1:].flatten()), torch.ones(10_000), accumulate=True
    )
    wanted = (model.table.weight.detach() / 0.8).softmax(-1)
    assert torch.allclose(counts / counts.sum(1, keepdim=True), wanted, atol=0.04)


def test_first_token_seed_and_vocabulary() -> None:
    model = Model()
    assert (self_generate(model, sequences=4, length=4, bos=2)[:, 0] == 2).all()
    a, b, c = (self_generate(model, sequences=4, length=9, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert int(self_generate(model, sequences=9, length=9, vocab=3).max()) <= 2


def test_leaves_the_model_and_the_global_rng_alone() -> None:
    model = Model().train()
    state = torch.get_rng_state()
    self_generate(model, sequences=2, length=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"length": 1}, CurvatureError),
        ({"temperature": 0}, CurvatureError),
        ({"vocab": V + 1}, ModelError),
        ({"bos": V}, ModelError),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, int], error: type[Exception]) -> None:
    with pytest.raises(error):
        self_generate(Model(), **({"sequences": 2, "length": 4} | arguments))


def test_damaged_weights() -> None:
    model = Model()
    model.emb.weight.data[:] = torch.nan
    with pytest.raises(CurvatureError, match="NaN"):
        self_generate(model, sequences=2, length=4)


def test_random_tokens() -> None:
    ids = random_tokens(10, sequences=20, length=30)
    assert (ids.shape, ids.dtype) == ((20, 30), torch.int64)
    assert set(ids.flatten().tolist()) == set(range(10))
    assert torch.equal(ids, random_tokens(10, sequences=20, length=30))


class Positions(Model):
    """Takes at most 100 positions."""

    def forward(self, ids: Tensor) -> Tensor:
        if ids.shape[1] > 100:
            raise IndexError("index out of range in self")
        return super().forward(ids)


def test_the_context_that_a_model_takes() -> None:
    assert selftext.text_length(Model(), 1024) == 1023
    assert selftext.text_length(Positions(), 1024) == 99
    assert selftext.text_length(Positions(), 100) == 99
    ids = self_generate(Positions(), sequences=2, length=selftext.text_length(Positions(), 1024))
    assert ids.shape == (2, 99)
    assert selftext.vocabulary(Model()) == V


def test_a_model_that_fails_on_any_length_says_so() -> None:
    model = Model()
    model.forward = lambda ids: 1 / 0
    with pytest.raises(CurvatureError, match="ZeroDivisionError"):
        selftext.text_length(model, 1024)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = Pairs().cuda()
    ids = self_generate(model, sequences=200, length=51, temperature=0.8)
    assert ids.device.type == "cpu"
    counts = torch.zeros(4, 4).index_put_(
        (ids[:, :-1].flatten(), ids[:, 1:].flatten()), torch.ones(10_000), accumulate=True
    )
    wanted = (model.table.weight.detach().cpu() / 0.8).softmax(-1)
    assert torch.allclose(counts / counts.sum(1, keepdim=True), wanted, atol=0.04)
