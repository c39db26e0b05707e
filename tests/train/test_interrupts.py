"""Ctrl-C and SIGTERM: saved at a step's end, on every rank alike; a folder has one run at a time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from pgolf.errors import UsageError
from pgolf.train.loop import interrupts
from pgolf.train.loop.interrupts import interrupt_flag
from pgolf.train.loop.metrics import read_metrics
from pgolf.train.loop.run_folder import train
from pgolf.train.loop.trainer import StepInfo
from tests.train.toys import SMALL, same, weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "to"), [(signal.SIGTERM, 1), (signal.SIGINT, 0)])
def test_all_ranks_stop_after_the_same_step_and_go_on_to_the_same_bits(
    number: signal.Signals, to: int, folder: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        free = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in free:
            each.bind(("127.0.0.1", 0))
        ports = ",".join(str(each.getsockname()[1]) for each in free)
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    arguments = [str(folder), str(tmp_path), str(int(number)), str(to), ports]
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.ranks_job", *arguments],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], errors
    told = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert told == [{"broken": True, "steps": 8}] * 2
    assert [row["step"] for row in read_metrics(tmp_path / "parts" / "train.jsonl")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_a_folder_in_use_is_refused_and_free_afterwards(folder: Path, tmp_path: Path) -> None:
    def meanwhile(info: StepInfo) -> None:
        if info.step in {1, 6}:  # before anything is saved, and after
            with pytest.raises(UsageError, match="another process trains there"):
                train("tiny", tmp_path / "run", data=folder, overrides=SMALL, resume=info.step == 6)

    train("tiny", tmp_path / "run", data=folder, overrides=SMALL, progress=meanwhile)
    assert train("tiny", tmp_path / "run", data=folder, overrides=SMALL, resume=True).steps == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_sets_the_flag_and_the_second_acts_as_ever(number: signal.Signals) -> None:
    acted: list[int] = []
    before = signal.signal(number, lambda *_: acted.append(1))
    try:
        with interrupt_flag() as flag:
            signal.raise_signal(number)
            assert flag.is_set()
            assert not acted
            signal.raise_signal(number)
            assert acted
        signal.raise_signal(number)
        assert len(acted) == 2
    finally:
        signal.signal(number, before)


def test_an_echo_is_no_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    acted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda *_: acted.append(1))
    try:
        with interrupt_flag(echoed=True) as flag:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            assert flag.is_set()
            assert not acted
            monkeypatch.setattr(interrupts, "ECHO", -1.0)
            signal.raise_signal(signal.SIGTERM)
            assert acted == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_leave_signals_alone() -> None:
    handler, seen = signal.getsignal(signal.SIGINT), list[object]()

    def work() -> None:
        with interrupt_flag() as flag:
            seen.extend([flag.is_set(), signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, handler]
