"""The smallest artifact below a limit: of the KL, of the rise, of the bits; and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import pgolf
from pgolf.errors import BudgetError, UsageError
from pgolf.fitting.goal import Goal
from pgolf.fitting.live import split
from pgolf.fitting.measure import noise_notes
from pgolf.quant.curvature.store import Curvature
from pgolf.scoring.divergence import Divergence, divergence
from tests.helpers import generator

VOCAB, WIDTH = 64, 48


class Small(nn.Module):
    """Two matrices between tied embeddings; likes to predict a token's neighbour."""

    def __init__(self) -> None:
        super().__init__()
        g = generator(5)
        self.emb = nn.Parameter(torch.randn(VOCAB, WIDTH, generator=g))
        self.up = nn.Parameter(torch.randn(96, WIDTH, generator=g) / 7)
        self.down = nn.Parameter(torch.randn(WIDTH, 96, generator=g) / 10)
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb[ids]
        x = self.gain * (x + torch.relu(x @ self.up.T) @ self.down.T)
        return x @ self.emb.T / WIDTH**0.5


def text(sequences: int = 160, length: int = 32) -> Tensor:
    return torch.randint(VOCAB, (sequences, length), generator=generator(1))


@cache
def curvature() -> Curvature:
    return pgolf.calibrate(Small(), text(64))


def packed(**goal: object) -> pgolf.Report:
    return pgolf.pack(Small(), None, curvature=curvature(), text=text(), **goal)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["auto", "rtn"])
@pytest.mark.parametrize("limit", [0.003, 0.05])
def test_the_kl_stays_below_and_near_its_limit(method: str, limit: float, tmp_path) -> None:
    path = tmp_path / "m.pgolf"
    made = pgolf.pack(Small(), path, curvature=curvature(), text=text(), max_kl=limit, method=method)
    assert made.asked
    assert made.measured
    assert made.asked.found == made.measured.kl
    assert 0.85 * limit < made.measured.kl <= limit
    assert made.asked.trials <= 9
    student = Small()
    pgolf.load_into(path, student)
    alone = divergence(Small(), student, split(text())[1])
    assert alone.kl == pytest.approx(made.measured.kl, rel=1e-4)


def test_a_larger_limit_gives_a_smaller_artifact_and_the_same_one_twice() -> None:
    small, large, again = packed(max_kl=0.05), packed(max_kl=0.005), packed(max_kl=0.05)
    assert small.artifact_bytes < 0.9 * large.artifact_bytes
    assert small.data == again.data


def test_no_finer_artifact_was_needed() -> None:
    """A pack into a per cent less misses the limit: the one found is the smallest, to about that."""
    made = packed(max_kl=0.02)
    less = packed(budget=round(0.985 * made.artifact_bytes))
    assert less.measured
    assert less.measured.kl > 0.02


def test_a_rise_stays_below_its_limit() -> None:
    made = packed(max_rise=0.05)
    assert made.asked
    assert made.measured
    assert made.asked.what == "max_rise"
    assert made.measured.rise == made.asked.found <= 0.05
    assert made.measured.rise_error > 0


def test_a_limit_that_noise_covers_is_noted() -> None:
    found = Divergence(4096, 0.001, 0.0001, 0.01, 0.99, 3.0, 0.0008, rise_error=0.002)
    assert "known to ± 0.002 only" in noise_notes(Goal(max_rise=0.001), found)[0]
    assert noise_notes(Goal(max_rise=0.001), replace(found, rise_error=0.0001)) == []
    assert noise_notes(Goal(max_kl=0.001), found) == []


@pytest.mark.parametrize("method", ["auto", "gptq", "rtn"])
def test_bits_are_those_of_the_quantized_weights(method: str) -> None:
    made = packed(bits=4.0, method=method)
    assert made.asked
    assert made.asked.found == pytest.approx(made.bits_per_weight)
    assert 3.9 < made.bits_per_weight <= 4.0


def test_bits_out_of_reach() -> None:
    with pytest.raises(BudgetError, match=r"0\.001 bits a weight cannot be met: the fewest tried were"):
        packed(bits=0.001)
    with pytest.raises(BudgetError, match="fixed by --set"):
        packed(bits=1.0, method="rtn", rules=["*=int8,step=1"])
    with pytest.raises(UsageError, match="here none is"):
        packed(bits=3.0, rules=["*=keep"])


def test_a_limit_out_of_reach_names_the_least() -> None:
    with pytest.raises(
        BudgetError, match=r"a KL of at most 1e-09 .* out of reach: the least of \d+ tried was"
    ) as caught:
        packed(max_kl=1e-9, method="gptq", rules=["*=int4"])
    assert caught.value.exit_code == 4
    with pytest.raises(UsageError, match="needs a step to search"):
        packed(max_kl=0.1, rules=["*=keep"])


def test_a_limit_beyond_all_damage_takes_the_coarsest_steps() -> None:
    made = packed(max_kl=1e4)
    assert made.asked
    assert made.asked.found < 1e4
    assert made.bits_per_weight < 0.3


@pytest.mark.parametrize(
    ("goal", "why"),
    [
        ({"max_kl": 0.1, "budget": 5000}, "give a budget or a largest KL, not both"),
        ({"max_kl": 0.1, "bits": 3, "max_rise": 1}, "give bits a weight or a largest KL or a largest rise, not all"),
        ({"max_kl": 0.0}, "a largest KL of 0.0 cannot be reached"),
        ({"max_rise": float("nan")}, "a largest rise of nan"),
        ({"bits": -1.0}, "bits a weight of -1.0"),
        ({"max_kl": 0.1, "deadline": 60}, "max_kl and a deadline exclude each other"),
        ({"max_rise": 0.1, "tune": "1k"}, "max_rise and tune exclude each other"),
    ],
)
def test_wishes_that_do_not_go_together(goal: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        packed(**goal)


def test_a_limit_needs_a_model() -> None:
    with pytest.raises(UsageError, match="max_kl is measured, which needs a model and text"):
        pgolf.pack(Small(), None, curvature=curvature(), max_kl=0.1)


def test_the_module_is_as_it_was() -> None:
    model = Small()
    before = copy.deepcopy(model.state_dict())
    pgolf.pack(model, None, curvature=curvature(), text=text(), max_kl=0.02)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_bits_hold_after_tuning() -> None:
    made = pgolf.pack(Small(), None, curvature=curvature(), text=text(400), bits=3.0, tune="5k")
    assert made.tuned
    assert made.bits_per_weight <= 3.0
