"""The whole benchmark with every size small and the clock replaced: what a GPU runs first must not fail first there."""

import json

import pytest
import torch
from click.testing import CliRunner

from pgolf.bench import clock, loading, suite
from pgolf.bench.sizes import Sizes
from pgolf.cli import main
from tests.kernels.places import HAS_GPU, needs_triton

SMALL = Sizes(
    layers=1, linear=((16, 32),), large=(16, 32), inputs=(1, 3), tokens=3, vocab=70, dim=8, weights=(5, 7), copy_bytes=64,
    square=8, preset="tiny", seq_len=16, batch=2, batches=2,
)  # fmt: skip


@pytest.fixture
def little(monkeypatch):
    monkeypatch.setattr(loading, "SHAPES", {"q": (12, 6)})
    monkeypatch.setattr(loading, "EMBEDDING", (10, 6))
    monkeypatch.setattr(loading.shutil, "which", lambda _: None)


@needs_triton
@pytest.mark.skipif(HAS_GPU, reason="this machine runs the benchmark itself")
@pytest.mark.usefixtures("little")
def test_every_measurement_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "timed", lambda work, **_: (work(), 0.5)[1])
    path = loading.synthetic(tmp_path / "a.pgolf", 1)
    load = loading.loading(path, torch.device("cpu"), tmp_path)
    assert load["lrzip"] == {"missing": "lrzip is not installed"}
    facts = suite.on_gpu(path, torch.device("cpu"), SMALL, load, lambda _: None)
    assert json.loads(json.dumps(facts))["bars"]["seconds to decode 36M codes"]["wanted"] == 5e-3
    assert {bar["met"] for bar in facts["bars"].values()} <= {True, False}
    assert facts["rans_decode"]["symbols"] == 12 * 6 + 10 * 6
    assert facts["eval"].keys() == {"dense", "artifact", "packed"}


@pytest.mark.usefixtures("little")
def test_without_a_gpu_it_says_what_is_missing(tmp_path):
    result = CliRunner().invoke(main, ["bench", "--device", "cpu", "--layers", "1", "-o", str(tmp_path / "r.json")])
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts == json.loads((tmp_path / "r.json").read_text())
    assert facts["load"]["seconds"].keys() == {"rans", "brotli"}
    assert "there is no CUDA device" in result.stderr
