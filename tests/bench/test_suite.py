"""The GPU benchmark, on the host and with every size small: what a GPU runs first must not fail first there."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from pgolf.bench import loading, suite
from pgolf.bench.sizes import TOY
from pgolf.cli import main
from tests.kernels.places import HAS_GPU, needs_triton


@pytest.fixture(autouse=True)
def no_other_program(monkeypatch):
    monkeypatch.setattr(loading.shutil, "which", lambda _: None)


def bench(*arguments):
    return CliRunner().invoke(main, ["bench", "--device", "cpu", *arguments])


@needs_triton
@pytest.mark.skipif(HAS_GPU, reason="this machine runs the benchmark itself")
def test_every_measurement_runs(tmp_path):
    result = bench("--toy", "-o", str(tmp_path / "r.json"))
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "r.json").read_text())
    assert facts["toy"] is True
    assert facts.keys() >= set(suite.MEASURES)
    assert facts["load"]["lrzip"] == {"missing": "lrzip is not installed"}
    assert facts["bars"]["seconds to decode 36M codes"]["wanted"] == 5e-3
    assert {bar["met"] for bar in facts["bars"].values()} <= {True, False}
    assert facts["rans_decode"]["symbols"] == 12 * 6 + 10 * 6
    assert facts["eval"].keys() == {"dense", "artifact", "packed"}
    assert facts["qat"]["ste"]["overhead"] == facts["qat"]["ste"]["seconds"] / facts["qat"]["without"]["seconds"] - 1


@needs_triton
@pytest.mark.skipif(HAS_GPU, reason="this machine runs the benchmark itself")
def test_one_measurement_brings_what_it_needs():
    facts = suite.measure_all(torch.device("cpu"), None, TOY, lambda _: None, ["dequant"])
    assert facts.keys() == {"limits", "dequant", "bars"}
    assert facts["bars"].keys() == {"dequant, share of a copy"}


def test_an_unknown_measurement_is_named():
    result = bench("--only", "dequant, speed")
    assert result.exit_code == 2
    assert result.stderr.startswith("pgolf: --only speed: known are load,")


def test_without_a_gpu_it_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("pgolf.bench.sizes.Sizes", lambda **_: replace(TOY, toy=False))
    result = bench("-o", str(tmp_path / "r.json"))
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts == json.loads((tmp_path / "r.json").read_text())
    assert facts["load"]["seconds"].keys() == {"rans", "brotli"}
    assert facts["load"]["first_seconds"] > 0
    assert "there is no CUDA device" in result.stderr


@pytest.mark.slow
def test_the_first_load_of_a_process_is_told_apart(tmp_path):
    path = loading.synthetic(tmp_path / "a.pgolf", TOY)
    found = loading.first_use(path, torch.device("cpu"))
    assert found.keys() == {"compiled", "kept"}
    assert min(found.values()) > 0
