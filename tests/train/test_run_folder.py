"""Runs: resumed to the bit, refused when settings differ, saved on Ctrl-C, alike on one rank and two."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pgolf.errors import CheckpointError, DataError, PgolfError, UsageError
from pgolf.train.loop import memory
from pgolf.train.loop import run_folder as run_module
from pgolf.train.loop.metrics import MetricsLog, plot_loss, read_metrics
from pgolf.train.loop.recipes import RECIPES, override
from pgolf.train.loop.run_folder import train
from pgolf.train.loop.trainer import StepInfo, Trainer, TrainSettings
from pgolf.train.model.gpt import untrained
from tests.train.toys import SMALL, same, stop_at, weights


def test_a_run_leaves_all_its_files(folder: Path, tmp_path: Path):
    report = train("tiny", tmp_path / "run", data=folder, overrides=SMALL)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *("checkpoint.pt", "loss.png", "state.pt", "train.json", "train.jsonl"),
    ]
    assert (report.steps, report.tokens, report.score) == (6, 6 * 4 * 16, None)
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "train.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert json.loads((tmp_path / "run" / "train.json").read_text())["steps"] == 6
    saved = torch.load(report.checkpoint, weights_only=True)
    untrained(saved["config"], saved["model"]).load_state_dict(saved["model"])


def test_stopped_and_resumed_equals_uninterrupted_to_the_bit(folder: Path, tmp_path: Path):
    handler = signal.getsignal(signal.SIGINT)
    train("tiny", tmp_path / "whole", data=folder, overrides=SMALL)
    for step in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            train("tiny", tmp_path / "parts", data=folder, overrides=SMALL, resume=step > 1, progress=stop_at(step))
        assert signal.getsignal(signal.SIGINT) is handler
    assert len(read_metrics(tmp_path / "parts" / "train.jsonl")) == 4
    assert not same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    report = train("tiny", tmp_path / "parts", data=folder, overrides=SMALL, resume=True)
    assert report.steps == 6
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    losses = [[row["loss"] for row in read_metrics(tmp_path / name / "train.jsonl")] for name in ("parts", "whole")]
    assert losses[0] == losses[1]


def test_a_checkpoint_knows_whether_the_loop_had_started(folder: Path, tmp_path: Path):
    """And a run that is resumed with its loop on ends as an uninterrupted one."""
    looped = [*SMALL, "loop=1", "loop_start=0.4"]
    for step, started in ((1, False), (4, True)):
        with pytest.raises(KeyboardInterrupt):
            train("tiny", tmp_path / "run", data=folder, overrides=looped, resume=step > 1, progress=stop_at(step))
        saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
        assert saved["config"]["looped"] is untrained(saved["config"], saved["model"]).looped is started
    train("tiny", tmp_path / "run", data=folder, overrides=looped, resume=True)
    train("tiny", tmp_path / "whole", data=folder, overrides=looped)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_finished_run_resumes_to_itself(folder: Path, tmp_path: Path):
    train("tiny", tmp_path, data=folder, overrides=SMALL)
    before = weights(tmp_path)
    assert train("tiny", tmp_path, data=folder, overrides=SMALL, resume=True).steps == 6
    assert same(weights(tmp_path), before)


def test_a_run_is_not_overwritten_nor_resumed_with_other_settings(folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="nothing to resume"):
        train("tiny", tmp_path / "run", data=folder, overrides=SMALL, resume=True)
    train("tiny", tmp_path / "run", data=folder, overrides=SMALL)
    with pytest.raises(UsageError, match="holds a run already: add --resume"):
        train("tiny", tmp_path / "run", data=folder, overrides=SMALL)
    with pytest.raises(UsageError, match=r"train.optim.matrix_lr is 0.06 there, 0.5 here"):
        train("tiny", tmp_path / "run", data=folder, overrides=[*SMALL, "matrix_lr=0.5"], resume=True)
    with pytest.raises(UsageError, match="seed is 0 there, 1 here"):
        train("tiny", tmp_path / "run", data=folder, overrides=SMALL, resume=True, seed=1)
    (tmp_path / "run" / "state.pt").write_bytes(b"PK broken")
    with pytest.raises(CheckpointError, match="damaged"):
        train("tiny", tmp_path / "run", data=folder, overrides=SMALL, resume=True)


def test_a_nan_keeps_the_last_good_checkpoint(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_module, "SAVE_SECONDS", 0.0)
    step = Trainer.step

    def poisoned(self: Trainer) -> StepInfo:
        if self.step_count == 3:
            self.model.blocks[0].attn_scale.data.fill_(math.nan)
        return step(self)

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(PgolfError, match=r"the loss is nan at step 4.*checkpoint.pt is the last good one"):
        train("tiny", tmp_path, data=folder, overrides=SMALL)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())
    assert torch.load(tmp_path / "state.pt", weights_only=True)["trainer"]["step"] == 3


def test_bad_input_is_refused_in_one_line(folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="--preset huge: known are tiny, small, golf"):
        train("huge", tmp_path)
    with pytest.raises(UsageError, match="small needs --data"):
        train("small", tmp_path)
    with pytest.raises(DataError, match="holds no training shards"):
        train("tiny", tmp_path, data=tmp_path)
    with pytest.raises(DataError, match=r"vocabulary of 32"):
        train("tiny", tmp_path, data=folder, overrides=[*SMALL, "vocab_size=32"])
    with pytest.raises(UsageError, match="does not divide into 3 passes on 1 ranks"):
        train("tiny", tmp_path, data=folder, overrides=[*SMALL, "accumulate=3"])
    with pytest.raises(UsageError, match="--minutes 0: must be above 0"):
        train("tiny", tmp_path, data=folder, minutes=0)


def test_a_preset_that_does_not_fit_in_memory(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_free_memory", lambda: 10**9)
    with pytest.raises(UsageError, match=r"training needs about \d+\.\d GB and 1\.0 GB are free: raise accumulate"):
        train("golf", tmp_path, data=folder)


def test_settings_by_name():
    recipe = override(RECIPES["tiny"], ["matrix_lr=0.5", "model.layers=3", "minutes=2", "steps=none"])
    assert (recipe.train.optim.matrix_lr, recipe.model.layers) == (0.5, 3)
    assert (recipe.train.minutes, recipe.train.steps) == (2.0, None)
    for bad, message in [
        ("layers", "write name=value"),
        ("layer=3", "did you mean layers"),
        ("layers=2.5", "layers is a whole number"),
        ("matrix_lr=nan", "matrix_lr is a number"),
        ("heads=5", "must divide"),
    ]:
        with pytest.raises(UsageError, match=message):
            override(RECIPES["tiny"], [bad])


@pytest.mark.parametrize("item", ["kv_heads=0", "layers=0", "seq_len=0", "batch_size=0", "accumulate=0"])
def test_settings_of_nothing_are_refused(item: str):
    with pytest.raises(UsageError, match=f"{item.partition('=')[0]} 0.* must be at least 1"):
        override(RECIPES["tiny"], [item])


def test_the_clock_ends_a_run_and_drives_the_schedule():
    timed = TrainSettings(steps=100, minutes=1.0)
    assert timed.progress(10, 30.0) == 0.5
    assert timed.progress(70, 30.0) == 0.7
    assert timed.progress(0, 90.0) == 1.0
    with pytest.raises(UsageError, match="needs an end"):
        TrainSettings()


def test_a_run_by_minutes_warms_down(folder: Path, tmp_path: Path):
    report = train("tiny", tmp_path, data=folder, overrides=[*SMALL, "steps=none"], minutes=0.01)
    rows = read_metrics(tmp_path / "train.jsonl")
    assert report.seconds >= 0.6
    assert rows[-1]["progress"] == 1.0
    assert rows[-1]["lr_scale"] < 0.5 < max(row["lr_scale"] for row in rows)


def test_log_forgets_what_a_resumed_run_repeats(tmp_path: Path):
    path = tmp_path / "log"
    log = MetricsLog(path)
    for step in (1, 2, 3):
        log(StepInfo(step, 0.1, 2.0, 1.0, 1.0, 0.1, 10 * step), val_bpb=1.5)
    log.close()
    path.write_text(path.read_text() + '{"step": 4, "lo')
    MetricsLog(path, keep=2).close()
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    plot_loss(path, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    path.write_text("no\n{}\n")
    with pytest.raises(DataError, match="line 1"):
        read_metrics(path)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_equal_one_that_accumulates_as_much(ranks: int, folder: Path, tmp_path: Path):
    """Tolerance: the same gradients summed in another order, in float32, through a few steps of Muon.

    All then calibrate and round, and rank 0 writes.
    """
    settings = [*SMALL, "matrix_lr=0.01", "embedding_lr=0.001", "vector_lr=0.001", "warmup=0", "grad_clip=100"]
    torchrun = f"-m torch.distributed.run --standalone --nproc-per-node={ranks}"
    command = [sys.executable, *torchrun.split(), "-m", "pgolf", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": "ignore"}
    arguments = ["--preset", "tiny", "--data", str(folder), "-o", str(tmp_path / "many"), "--json", "--pack", "60kB"]
    arguments += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(
        command + arguments, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)  # one rank speaks for all
    assert told["steps"] == 6
    assert told["packed"]["bytes"] == (tmp_path / "many" / "model.pgolf").stat().st_size <= 60_000
    train("tiny", tmp_path / "one", data=folder, overrides=[*settings, f"accumulate={ranks}"])
    one, many = weights(tmp_path / "one"), weights(tmp_path / "many")
    for name in one:
        assert torch.allclose(one[name], many[name], atol=2e-4, rtol=1e-3), name
    losses = [[row["loss"] for row in read_metrics(tmp_path / run / "train.jsonl")] for run in ("one", "many")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
