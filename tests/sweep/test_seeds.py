import json

import pytest
import torch
from click.testing import CliRunner

from pgolf.cli import main
from pgolf.errors import UsageError
from pgolf.sweep.seeds import gain_test, over_seeds
from tests.helpers import sweep_inputs, toy_state


def test_a_gain_is_proven_by_a_one_sided_paired_test():
    clear = gain_test([0.0101, 0.0099, 0.0100])
    assert clear["passes"]
    assert clear["mean"] == pytest.approx(0.01)
    assert clear["p"] == pytest.approx(6.665e-05, rel=1e-3)  # t = 0.005 / (1e-4 / √3) = 86.6 with 2 degrees of freedom
    assert not gain_test([0.0051, 0.0049, 0.0055])["passes"]
    assert not gain_test([-0.0101, -0.0099, -0.0100])["passes"]
    assert gain_test([0.01]) == {"gains": [0.01], "mean": 0.01, "spread": None, "p": None, "passes": False}


def test_several_checkpoints_give_means_spreads_and_gains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep_inputs(tmp_path)
    for seed in (1, 2):
        state = toy_state(seed)
        state["tok_emb.weight"] *= 0.2
        torch.save(state, f"ckpt{seed}.pt")
    arguments = [
        "sweep", "--seeds", "ckpt.pt", "ckpt1.pt", "ckpt2.pt", "--model", "toy.py:Toy", "--data", "val.bin",
        "--bytes", "bytes.bin", "--seq-len", "64", "--methods", "sdclip:int6", "--bits", "3.5,5", "--calib", "none",
        "--jobs", "1", "-o", "s",
    ]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "gain, nats/token" in result.stdout
    results = json.loads((tmp_path / "s" / "results.json").read_text())
    each = [json.loads((tmp_path / "s" / f"seed-{i}" / "results.json").read_text()) for i in range(3)]
    for i, point in enumerate(results["points"]):
        scores = [r["points"][i]["bpb"] for r in each]
        assert point["bpb"] == pytest.approx(sum(scores) / 3)
        assert point["bpb_spread"] > 0
    assert results["seeds"] == ["ckpt.pt", "ckpt1.pt", "ckpt2.pt"]
    assert results["gains"]
    assert all(len(g["gains"]) == 3 for g in results["gains"])


def test_seeds_of_different_models_are_refused(tmp_path):
    sweeps = [{"before": {"weights": n}, "points": []} for n in (10, 11)]
    with pytest.raises(UsageError, match="number of weights"):
        over_seeds(sweeps, ["a", "b"], tmp_path)
