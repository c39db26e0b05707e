"""Runs with QAT and packing: resumed to the bit, said in the log, refused when it would do nothing, and worth it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pgolf.errors import BudgetError, UsageError
from pgolf.fitting import packing
from pgolf.loading import dense
from pgolf.train.loop.metrics import read_metrics
from pgolf.train.loop.run_folder import train
from pgolf.train.loop.trainer import Trainer, TrainSettings
from pgolf.train.model.gpt import GPT, GPTConfig
from pgolf.train.qat.hooks import QAT
from tests.train.toys import SMALL, cycle_sampler, same, stop_at, weights

WIDER = [*SMALL, "dim=48", "heads=3", "rope_dims=8"]  # matrices large enough to be quantized
NOISY = "auto,bits=3,start=0.3,rounding=noise,rate=0.01,recalibrate=0.2"
CONFIG = GPTConfig(vocab_size=16, layers=2, dim=48, heads=3, kv_heads=1, mlp_mult=2, rope_dims=8)


def test_a_run_with_qat_resumes_to_the_bit_and_says_when_it_ran(folder: Path, tmp_path: Path):
    report = train("tiny", tmp_path / "whole", data=folder, overrides=WIDER, qat=NOISY)
    rows = read_metrics(tmp_path / "whole" / "train.jsonl")
    assert [row["qat"] for row in rows] == [False, False, True, True, True, True]
    assert all((row["rate"] > 1) == row["qat"] for row in rows)
    assert report.qat.endswith("in 4 updates")
    with pytest.raises(KeyboardInterrupt):
        train("tiny", tmp_path / "parts", data=folder, overrides=WIDER, qat=NOISY, progress=stop_at(3))
    assert len(read_metrics(tmp_path / "parts" / "train.jsonl")) == 4
    train("tiny", tmp_path / "parts", data=folder, overrides=WIDER, qat=NOISY, resume=True)
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    train("tiny", tmp_path / "without", data=folder, overrides=WIDER)
    assert not same(weights(tmp_path / "without"), weights(tmp_path / "whole"))
    with pytest.raises(UsageError, match=r"qat is None there|qat is \{.* there, None here"):
        train("tiny", tmp_path / "whole", data=folder, overrides=WIDER, resume=True)


def test_qat_that_would_touch_nothing_does_not_start(folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="QAT touches nothing"):
        train("tiny", tmp_path, data=folder, overrides=WIDER, qat="keep")
    with pytest.raises(UsageError, match="rounding 'up'"):
        train("tiny", tmp_path, data=folder, overrides=WIDER, qat="rounding=up")


def test_a_run_packs_its_result(folder: Path, tmp_path: Path):
    report = train("tiny", tmp_path, data=folder, overrides=WIDER, pack="60kB")
    assert report.packed["bytes"] <= 60_000
    assert json.loads((tmp_path / "model.json").read_text())["artifact_bytes"] == report.packed["bytes"]
    assert json.loads((tmp_path / "train.json").read_text())["packed"]["file"] == "model.pgolf"
    assert dense.load(tmp_path / "model.pgolf").keys() == weights(tmp_path).keys()
    with pytest.raises(UsageError):
        train("tiny", tmp_path / "other", data=folder, overrides=WIDER, pack="much")
    with pytest.raises(BudgetError):
        train("tiny", tmp_path, data=folder, overrides=WIDER, resume=True, pack="1kB")
    assert report.checkpoint.exists()


@pytest.mark.parametrize("rounding", ["ste", "soft"])
def test_the_exported_average_pays_less_tax_after_qat(rounding: str):
    """Three levels a weight: 0.30 nats packed without QAT, 0.12 with it (0.12 before packing)."""
    rules = ["*=int2,k=1"]

    def trained(with_qat: bool) -> tuple[float, float]:
        model = GPT(CONFIG)
        sampler = cycle_sampler()
        qat = QAT(model, rules=rules, start=0.6, rounding=rounding) if with_qat else None
        trainer = Trainer(model, sampler, TrainSettings(steps=60), qat=qat)
        trainer.run()
        windows = sampler.batch(1000)
        losses = []
        state = trainer.averaged_state()
        for packed in (False, True):
            if packed:
                made = packing.pack(state, None, method="sdclip", rules=rules)
                state = dense.tensors_of(packing.artifact.decode(made.data)[0])
            model.load_state_dict(state)
            with torch.no_grad():
                losses.append(model(windows[:, :-1], windows[:, 1:]).item())
        return losses[0], losses[1]

    plain, prepared = trained(False), trained(True)
    assert plain[1] > 1.5 * plain[0]
    assert prepared[1] < 0.7 * plain[1]


def test_clipping_sees_the_gradient_of_soft_rounding(folder: Path, tmp_path: Path):
    train("tiny", tmp_path, data=folder, overrides=WIDER, qat="int3,k=2,rounding=soft,start=0.5")
    assert all(np.isfinite(row["grad_norm"]) for row in read_metrics(tmp_path / "train.jsonl"))


def test_ctrl_c_saves_and_exits_130(folder: Path, tmp_path: Path):
    """The command line, pressed once the log has its first line."""
    settings = [word for item in [*SMALL, "steps=100000"] for word in ("--set", item)]
    command = [sys.executable, "-m", "pgolf.cli", "train", "--data", folder, "-o", tmp_path / "run", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        log = tmp_path / "run" / "train.jsonl"
        try:
            _wait(process, log)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    saved = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["trainer"]["step"]
    assert saved == len(read_metrics(log))


def _wait(process: subprocess.Popen, log: Path) -> None:
    """Until the log has a line; fails if the process ends before."""
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
