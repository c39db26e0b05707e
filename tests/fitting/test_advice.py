import json

import pytest
import torch
from click.testing import CliRunner

import pgolf
from pgolf.cli import main
from pgolf.errors import UsageError
from pgolf.fitting.advice import FACTOR, advise
from tests.fitting.test_packing import FakeCurvature
from tests.helpers import toy_state


def test_another_size_is_this_model_with_its_bits():
    found = advise(toy_state(), budget="9kB", curvature=FakeCurvature())
    fewer = pgolf.estimate(toy_state(), budget=int(9000 / FACTOR), curvature=FakeCurvature())
    assert found.here == pgolf_estimate_as(found.here, budget="9kB")
    assert (found.larger.bits_per_weight, found.larger.loss_rise) == (fewer.bits_per_weight, fewer.loss_rise)
    assert found.larger.weights == round(FACTOR * found.weights)
    assert found.larger.bits_per_weight < found.here.bits_per_weight < found.smaller.bits_per_weight


def pgolf_estimate_as(found, **how):
    """A fresh estimate, its seconds those of `found`."""
    fresh = pgolf.estimate(toy_state(), curvature=FakeCurvature(), **how)
    return type(fresh)(**{**fresh.__dict__, "seconds": found.seconds})


def test_the_break_even_is_the_difference_of_the_rises():
    found = advise(toy_state(), budget="9kB", curvature=FakeCurvature())
    assert found.larger.break_even == pytest.approx(found.larger.loss_rise - found.here.loss_rise)
    assert found.smaller.break_even < 0 < found.larger.break_even


def test_code_takes_room_from_all_sizes(tmp_path):
    (tmp_path / "train.py").write_text("print(1)\n")
    with_code = advise(toy_state(), budget="9kB", code=[tmp_path / "train.py"])
    assert with_code.larger.bits_per_weight < advise(toy_state(), budget="9kB").larger.bits_per_weight


def test_without_curvature_there_are_bits_alone():
    found = advise(toy_state(), budget="9kB")
    assert (found.larger.loss_rise, found.larger.break_even) == (None, None)


def test_a_larger_one_may_not_fit():
    smallest = pgolf.estimate(toy_state(), budget=300, curvature=FakeCurvature()).num_bytes
    found = advise(toy_state(), budget=round(1.1 * smallest), curvature=FakeCurvature())
    assert (found.here.fits, found.larger.fits, found.smaller.fits) == (True, False, True)


def test_advice_needs_a_budget(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(toy_state(), "ckpt.pt")
    with pytest.raises(UsageError, match="--budget"):
        advise(toy_state(), budget=None)
    done = CliRunner().invoke(main, ["estimate", "ckpt.pt", "--advise"])
    assert done.exit_code == 2
    assert "--budget" in done.stderr
    assert done.stdout == ""


def test_the_command_line_says_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(toy_state(), "ckpt.pt")
    told = CliRunner().invoke(main, ["estimate", "ckpt.pt", "--budget", "9kB", "--advise"])
    assert "larger" in told.stdout
    assert "--curvature tells what that costs" in told.stdout
    found = json.loads(
        CliRunner().invoke(main, ["estimate", "ckpt.pt", "--budget", "9kB", "--advise", "--json"]).stdout
    )
    assert found["advice"]["smaller"]["weights"] < found["advice"]["weights"]
    assert CliRunner().invoke(main, ["estimate", "ckpt.pt", "--budget", "300", "--advise"]).exit_code == 4
