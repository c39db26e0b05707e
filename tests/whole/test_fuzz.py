"""A short run of every fuzz target, all inputs that ever broke a promise, and proof that broken promises are seen."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from fuzz import run
from fuzz.targets import TARGETS, Target
from pgolf.errors import ArtifactError


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_a_promise(name, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "CORPUS", tmp_path)
    verdict = run.hammer(name, inputs=100, seconds=60, seed=7)
    assert not verdict["broken"], verdict
    assert verdict["inputs"] == sum(verdict["refused"].values()) + verdict["accepted"] == 100
    assert verdict["refused"]


@pytest.mark.parametrize("path", sorted(p for p in run.CORPUS.glob("*/*") if p.is_file()), ids=lambda p: p.name)
def test_inputs_that_once_broke_a_promise(path):
    target = TARGETS[path.parent.name]
    run.judge(target, path.read_bytes(), run.honest_peak(target))


def _refuses(message):
    def read(data):
        if data != b"honest":
            raise Chatty(message)
        return 1

    return read


def _raises(data):
    if data != b"honest":
        raise ValueError("oops")


class Chatty(ArtifactError):
    def __str__(self):
        return Exception.__str__(self)


FAULTS = {
    "another exception": (_raises, "ValueError: oops"),
    "another meaning": (lambda data: [data], "another meaning"),
    "memory": (lambda data: len(np.zeros(10**7)) if data != b"honest" else 1, "bytes allocated"),
    "two lines": (_refuses("one\ntwo"), "several lines"),
    "a hang": (lambda data: time.sleep(5) if data != b"honest" else 1, "longer than 1 s"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_promises_are_seen_and_kept(fault, monkeypatch, tmp_path):
    read, said = FAULTS[fault]
    monkeypatch.setattr(run, "CORPUS", tmp_path)
    monkeypatch.setattr(run, "SECONDS", 1)
    always = (lambda data, rng: b"bad",)
    monkeypatch.setitem(TARGETS, "planted", Target(read, lambda: [b"honest"], always, sealed=True))
    verdict = run.hammer("planted", inputs=5, seconds=60, seed=0)
    assert said in verdict["broken"][0]["what"]
    assert verdict["inputs"] == len(verdict["broken"]) == run.MOST_BROKEN
    assert [p.read_bytes() for p in (tmp_path / "planted").iterdir()] == [b"bad"]


@pytest.mark.slow
def test_kills_lose_nothing():
    """A dozen; `make fuzz` does two hundred."""
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.kills", "--kills", "12"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(json.loads(line)["killed"] > 0 for line in done.stdout.splitlines())


@pytest.mark.slow
def test_signals_to_one_rank_of_two_lose_nothing():
    """Five, some of each; `make fuzz` does a hundred."""
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.kills_of_ranks", "--kills", "5"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert (told["signals"], told["then_finished"] > 0, told["lost"]) == (5, True, [])
