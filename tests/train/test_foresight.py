"""A run is foreseen while it trains, as its log says it; --stop-if ends it on every rank, saved and able to go on."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pgolf.cli import main
from pgolf.data import sidecar
from pgolf.data.shards import write_shard
from pgolf.errors import BudgetError, StoppedError, UsageError
from pgolf.oracle.model import foresee
from pgolf.oracle.reading import read
from pgolf.train.loop import foresight, run_folder
from pgolf.train.loop.foresight import Foreseen
from pgolf.train.loop.metrics import read_metrics
from pgolf.train.loop.run_folder import train
from pgolf.train.loop.stop_if import parse
from tests.train.toys import CYCLE, SMALL, same, weights

ROOT = Path(__file__).resolve().parents[2]
STEPS = [*SMALL, "steps=50"]
BYTES = 3  # of every token of the validation text


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with a validation text whose bytes are known."""
    folder = tmp_path_factory.mktemp("scored")
    write_shard(folder / "train_0.bin", CYCLE)
    write_shard(folder / "val_0.bin", CYCLE[:200])
    write_shard(sidecar.path_of(folder / "val_0.bin"), np.full(200, BYTES, np.uint16))
    return folder


def test_the_first_line_is_enough_for_the_oracle_and_train_sees_what_it_sees(scored: Path, tmp_path: Path) -> None:
    seen: list[Foreseen] = []
    train("tiny", tmp_path / "run", data=scored, overrides=STEPS, foreseen=seen.append)
    rows = read_metrics(tmp_path / "run" / "train.jsonl")
    assert rows[0]["bpb_per_nat"] == pytest.approx(1 / (math.log(2) * BYTES))
    assert (rows[0]["vocab"], rows[0]["world_size"], rows[0]["max_wallclock_s"]) == (64, 1, 0)
    assert "vocab" not in rows[1]
    assert [one.step for one in seen] == list(range(5, 50))
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:30]))
    (run,) = read(tmp_path / "train.jsonl")
    found = foresee(run)
    here = next(one for one in seen if one.step == 30)
    assert (found.how, here.how, found.total) == ("curve", "curve", 50)
    assert here.values() == {"final": found.bands["unpacked"].value, "packed": found.bands["final"].value}
    assert "by its own curve" in str(here)


def test_a_finished_run_has_its_measured_score(scored: Path, tmp_path: Path) -> None:
    report = train("tiny", tmp_path / "run", data=scored, overrides=STEPS)
    assert report.score is not None
    (run,) = read(tmp_path / "run" / "train.jsonl")
    assert run.unpacked == report.score.bpb
    assert run.nats == pytest.approx(1 / (math.log(2) * BYTES))


def test_a_hopeless_run_is_saved_and_goes_on_to_the_same_bits(scored: Path, tmp_path: Path) -> None:
    train("tiny", tmp_path / "whole", data=scored, overrides=STEPS)
    with pytest.raises(StoppedError, match=r"after step 21: final [\d.]+ > 0\.01 and step 20 >= 20; .*--resume"):
        train("tiny", tmp_path / "parts", data=scored, overrides=STEPS, stop_if="final>0.01 and step>=20")
    assert len(read_metrics(tmp_path / "parts" / "train.jsonl")) == 21
    seen: list[Foreseen] = []
    train(
        "tiny", tmp_path / "parts", data=scored, overrides=STEPS, resume=True, stop_if="final>99", foreseen=seen.append
    )
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert read_metrics(tmp_path / "parts" / "train.jsonl")[0]["vocab"] == 64
    assert seen[0].step == 22
    assert seen[0].final is not None


def test_a_run_by_time_is_ended_by_seconds_and_without_validation(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match=r"seconds [\d.e-]+ > 0"):
        train("tiny", tmp_path / "run", data=folder, overrides=SMALL, stop_if="seconds>0")
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    assert "bpb_per_nat" not in read_metrics(tmp_path / "run" / "train.jsonl")[0]


@pytest.mark.parametrize(
    ("text", "pack", "said"),
    [
        ("final>1.6 or step>3", None, r"'final>1.6 or step>3' is no condition: write final>1.6, of final, packed"),
        ("loss>1", None, "'loss>1' is no condition"),
        ("final=1", None, "'final=1' is no condition"),
        ("", None, "'' is no condition"),
        ("final>1.6 and", None, "'' is no condition"),
        ("final>nan", None, "'nan' is no number"),
        ("1<final<2", None, "'1<final<2' is no condition"),
        ("size>wide", "9kB", "wide"),
        ("size>2MB", None, "say with --pack SIZE"),
        ("final>1", None, "needs a validation shard"),
        ("packed>1", "9kB", "needs a validation shard"),
    ],
)
def test_a_wrong_condition_is_one_line_and_nothing_begins(
    folder: Path, tmp_path: Path, text: str, pack: str | None, said: str
) -> None:
    words = ["train", "-o", str(tmp_path / "run"), "--data", str(folder), "--stop-if", text]
    words += [word for item in SMALL for word in ("--set", item)] + (["--pack", pack] if pack else [])
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2, (result.output, result.exception)
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "train.jsonl").exists()


def test_conditions() -> None:
    rule = parse("final >= 1.5 and size<2MB and  seconds > 1e2")
    assert rule.names == {"final", "size", "seconds"}
    known = {"final": 1.5, "size": 1_999_999.0, "seconds": 101.0}
    assert rule.reason(known) == "final 1.5 >= 1.5 and size 1,999,999 < 2,000,000 and seconds 101 > 100"
    for change in ({"final": 1.4999}, {"size": 2e6}, {"seconds": 100.0}):
        assert rule.reason(known | change) == ""
    assert rule.reason({"size": 1.0, "seconds": 101.0}) == ""


def test_the_pack_that_is_asked_for_is_estimated_and_changes_nothing(scored: Path, tmp_path: Path) -> None:
    seen: list[Foreseen] = []
    few = [*SMALL, "steps=10"]
    train("tiny", tmp_path / "run", data=scored, overrides=few, pack="9kB", foreseen=seen.append)
    train("tiny", tmp_path / "alone", data=scored, overrides=few)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "alone"))
    last = seen[-1]
    assert last.size is not None
    assert last.size <= 9000
    assert last.fits
    assert last.final is not None
    assert last.packed is not None
    assert last.packed.value > last.final.value
    assert f"{last.size:,} B" in str(last)


def test_a_pack_that_cannot_be_estimated_ends_no_run(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BudgetError("no room")

    monkeypatch.setattr(run_folder, "estimated", fail)
    seen: list[Foreseen] = []
    report = train("tiny", tmp_path / "run", data=scored, overrides=STEPS, pack="9kB", foreseen=seen.append)
    assert [note for note in report.notes if "were not foreseen to the end: no room" in note]
    assert seen[-1].size is None
    assert seen[-1].packed is not None


def test_looks_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(foresight, "foresee", lambda run: asked.append(run.step) or foresee(run))
    watch = foresight.Watch({"bpb_per_nat": 0.4}, [], None)
    for step in range(1, 5001):
        watch.after({"step": step, "progress": step / 5000, "loss": 5 - step / 5000, "seconds": step, "tokens": step})
    assert asked[0] == 500
    assert 80 <= len(asked) <= 91


def test_the_command_says_it_and_ends_with_its_own_code(scored: Path, tmp_path: Path) -> None:
    words = ["train", "-o", str(tmp_path / "run"), "--data", str(scored), "--stop-if", "final>0.01"]
    result = CliRunner().invoke(main, words + [word for item in STEPS for word in ("--set", item)])
    assert result.exit_code == 5, (result.output, result.exception)
    assert result.stderr.startswith("pgolf: --stop-if ended the run after step")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_all_ranks_end_after_the_same_step_with_the_same_code(scored: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [sys.executable, "-m", "pgolf", "train", "-o", str(tmp_path / "run"), "--data", str(scored)]
    words += ["--stop-if", "final>0.01 and step>=12", *(word for item in STEPS for word in ("--set", item))]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    jobs = [
        subprocess.Popen(
            words,
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [5, 5], errors
    assert all("after step 13" in error for error in errors)
    assert len(read_metrics(tmp_path / "run" / "train.jsonl")) == 13


def test_a_condition_of_a_pack_without_one_is_refused_in_python_too(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--pack SIZE"):
        train("tiny", tmp_path / "run", data=folder, overrides=SMALL, stop_if="size>1")
