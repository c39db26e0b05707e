"""What a sample of a model's matrices says of all of them, and what a search makes of it."""

import math
from dataclasses import replace

import pytest
import torch

import pgolf
from pgolf.errors import BudgetError
from pgolf.fitting import guided, sample
from pgolf.fitting.inputs import job_of
from pgolf.fitting.search import Attempt
from pgolf.fitting.trial import Job
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.methods import auto
from pgolf.quant.settings import Settings
from tests.fitting.test_estimate import deep_state
from tests.helpers import generator

WIDTH = 96
DEEP = deep_state(layers=12, width=WIDTH)


class Known:
    """A curvature of every matrix, by hand; full: the names whose G has rows that depend on each other."""

    notes: tuple[str, ...] = ()
    unreached: frozenset[str] = frozenset()

    def __init__(self, state: dict[str, torch.Tensor], full: tuple[str, ...] = ()) -> None:
        self.known = {}
        for seed, (name, tensor) in enumerate(state.items()):
            if tensor.dim() > 1:
                g, h = (
                    torch.randn(2 * side, side, generator=generator(seed))
                    * torch.rand(side, generator=generator(1)) ** 2
                    for side in tensor.shape[-2:]
                )
                G = g.T @ g if name in full else g.square().sum(dim=0)
                one = MatrixCurvature(h.T @ h / len(h), G / len(g))
                self.known[name] = [one] * (len(tensor) if tensor.dim() > 2 else 1)

    def matrices(self, name: str) -> list[MatrixCurvature | None] | None:
        return self.known.get(name)

    def seen(self, name: str) -> list[bool]:
        return [True] * len(self.known[name])


WAYS = [{}, {"method": "gptq"}, {"curvature": Known(DEEP)}, {"rules": ["tok_emb.weight=keep"]}]


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models are as large ones."""
    monkeypatch.setattr(guided, "MANY", 1)
    monkeypatch.setattr(sample, "LARGE", 1 << 14)
    monkeypatch.setattr(sample, "SHORTEST", 8)


@pytest.fixture
def weights_rounded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of every trial that quantized something, how many weights."""
    seen, run = [], Job.run

    def counted(self: Job, step: float):
        seen.extend([self.weights(self.quantized)] if self.quantized else [])
        return run(self, step)

    monkeypatch.setattr(Job, "run", counted)
    return seen


@pytest.fixture
def factored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of every matrix whose curvature was factored, (rows, columns)."""
    seen, frame = [], auto.curvature_frame

    def noted(curvature: MatrixCurvature, rows: int, settings: Settings):
        seen.append((rows, len(curvature.H)))
        return frame(curvature, rows, settings)

    monkeypatch.setattr(auto, "curvature_frame", noted)
    return seen


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("step", [0.5, 1.0])
def test_it_knows_what_all_of_it_takes_and_how_well(how: dict, step: float):
    made = dict(how)
    job = job_of(DEEP, made.pop("curvature", None), search=True, **made)
    look = sample.of(job, 1 / 6)
    told, whole = look.told(step), job.run(step)
    assert told.num_bytes == pytest.approx(whole.size, rel=max(0.004, 4 * told.error))
    assert told.error < 0.02
    assert told.bits / job.weights(job.quantized) == pytest.approx(
        whole.bits_per_weight, rel=max(0.004, 4 * told.error)
    )
    assert look.job.weights(look.job.quantized) < job.weights(job.quantized) / 3


def test_a_larger_sample_is_surer_and_all_of_it_is_sure():
    job = job_of(DEEP, search=True)
    errors = [sample.of(job, share).told(1.0).error for share in (1 / 6, 1 / 2, 1.0)]
    assert errors[0] > errors[1] > errors[2] >= 0
    assert errors[2] < errors[0] / 3  # of the table some rows are taken whatever the share


@pytest.mark.parametrize(
    ("how", "goal"),
    list(zip(WAYS, [{"budget": 220_000}, {"bits": 2.5}, {"budget": 220_000}, {"bits": 2.5}], strict=True)),
)
def test_few_whole_trials_are_run(how: dict, goal: dict, weights_rounded: list[int], factored: list[tuple[int, int]]):
    made = pgolf.pack(DEEP, None, **how, **goal)
    if "budget" in goal:
        assert 0 <= goal["budget"] - made.artifact_bytes <= max(1e-3 * goal["budget"], 200)
    else:
        assert 0 <= goal["bits"] - made.bits_per_weight <= 1e-3 * goal["bits"]
    whole = max(weights_rounded)
    assert weights_rounded.count(whole) <= 3  # codes of so few weights scatter by as much as is aimed at
    assert min(weights_rounded) < whole / 2
    assert [row.name for row in made.rows] == sorted(DEEP)  # no part of one is told of
    matrices = [shape for shape in factored if shape in {(3 * WIDTH, WIDTH), (WIDTH, 3 * WIDTH), (512, WIDTH)}]
    assert len(matrices) == (25 if "curvature" in how else 0)  # each once


@pytest.mark.parametrize("off", [0.98, 1.0, 1.03])
@pytest.mark.parametrize("target", [30_000, 200_000, 400_000])
def test_a_sample_that_is_wrong_by_some_per_cent_costs_one_trial_more(off: float, target: int, monkeypatch):
    """Sizes fall in stairs, as where a scale that all rows share is rounded."""

    def size(step: float) -> float:
        stairs = 0.2 * math.floor(64 * math.log2(step)) / 64 + 0.8 * math.log2(step)
        return 1e5 * math.log2(1 + 2 ** (2 * (4 - stairs))) / 2

    job = job_of(DEEP, search=True)
    monkeypatch.setattr(Job, "expected_bits", lambda *_: {"": 8.3 * target})
    monkeypatch.setattr(sample.Sample, "expected_bytes", lambda _, step: 1.02 * size(step))
    monkeypatch.setattr(sample.Sample, "told", lambda _, step: sample.Told(size(step), 8 * size(step), 1e-4))
    found = guided.largest_that_fits(
        job, lambda step: Attempt(step, off * size(step), None), target, 1e-3 * target, lambda told: told.num_bytes
    )
    assert found.best is not None
    assert 0 <= target - found.best.size <= 1e-3 * target
    assert found.trials == (1 if off == 1 else 2)


def test_a_budget_out_of_reach_is_said():
    with pytest.raises(BudgetError, match="does not fit: 200 B are left"):
        pgolf.pack(deep_state(layers=1, width=32), None, budget=200)


def test_only_rows_that_are_rounded_alone_are_taken_from_a_matrix():
    g = generator(7)
    state = {
        "table": torch.randn(1024, 48, generator=g),
        "bank": 0.1 * torch.randn(40, 48, 48, generator=g),
        "fed": torch.randn(512, 48, generator=g),
        "small": torch.randn(64, 48, generator=g),
    }
    found = sample.of(job_of(state, Known(state, full=("fed",)), search=True), 1 / 8)
    taken = {kind.everyone[0]: kind.sampled for kind in found.kinds}
    assert taken["fed"] == ("fed",)
    assert taken["small"] == ("small",)
    assert {found.job.source.tensors[name].shape[1:] for name in taken["bank"]} == {(48, 48)}
    assert all(len(found.job.curvatures[name]) == len(found.job.source.tensors[name]) for name in taken["bank"])
    assert len(taken["table"]) == len(taken["bank"]) == sample.PARTS
    rows = torch.cat([found.job.source.tensors[name] for name in taken["table"]])
    assert len(torch.unique(rows, dim=0)) == len(rows) == pytest.approx(128, abs=sample.PARTS)
    told = found.told(1.0)
    assert told.num_bytes == pytest.approx(found.whole.run(1.0).size, rel=max(0.01, 3 * told.error))


def test_what_is_rounded_together_is_taken_together():
    state = {f"{100 + i}.head": 0.2 * torch.randn(64, 64, generator=generator(i)) for i in range(48)}
    names = sorted(state)
    stacks = {names[i]: tuple(names[i : i + 6]) for i in range(0, 48, 6)}
    job = replace(job_of(state, Known(state), search=True), stacks=stacks)
    found = sample.of(job, 1 / 16)
    (kind,) = found.kinds
    assert len(kind.everyone) == 8
    assert len(kind.sampled) == 2
    assert sorted(found.job.source.tensors) == sorted(name for leader in kind.sampled for name in stacks[leader])
    assert found.told(1.0).bits / 8 == pytest.approx(job.run(1.0).size, rel=0.1)
