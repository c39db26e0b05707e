"""Under torchrun a command speaks once, and every rank ends with one exit code, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pgolf.commands import in_a_job
from pgolf.common import ranks
from tests.helpers import free_port, sweep_inputs, without_times

ROOT = Path(__file__).resolve().parents[2]
PACK = ("pack", "ckpt.pt", "--budget", "9kB", "--model", "toy.py:Toy", "--tokens", "1024")
LONG = (
    "calibrate",
    "ckpt.pt",
    "--model",
    "toy.py:Toy",
    "--calib",
    "self",
    "--tokens",
    "60000000",
    "-o",
    "c.safetensors",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sweep_inputs(tmp_path)
    return tmp_path


def started(folder: Path, *words: str, places: Sequence[Path] = ()) -> list[subprocess.Popen[str]]:
    """The two processes that torchrun would start; places: the folders that they start in."""
    told = {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "pgolf", *words],
            env={**os.environ, **told, "RANK": str(r), "LOCAL_RANK": str(r), "PYTHONPATH": str(ROOT)},
            cwd=places[r] if places else folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]


def ended(jobs: Sequence[subprocess.Popen[str]]) -> tuple[list[int], str, str]:
    """(exit codes, all that was printed, all errors) of both.

    Without what torch warns of where rank 0, which keeps the store here in place of torchrun, is the first to be gone.
    """
    told = [job.communicate(timeout=90) for job in jobs]
    errors = [line for _, said in told for line in said.splitlines(keepends=True)]
    if any("TCPStore" in line for line in errors):
        errors = [line for line in errors if line.startswith("pgolf: ")]
    return [job.returncode for job in jobs], "".join(out for out, _ in told), "".join(errors)


@pytest.mark.parametrize("calib", ["val.bin", pytest.param("self", marks=pytest.mark.slow)])
def test_a_pack_is_shared_and_told_once(folder: Path, calib: str) -> None:
    tuned = ("--tokens", "256", "--seq-len", "16", "--tune", "4k")
    codes, out, errors = ended(started(folder, *PACK, "--calib", calib, *tuned))
    assert (codes, errors) == ([0, 0], "")
    assert out.count("written            ckpt.pgolf") == 1
    assert out.count("tuned              on ") == 1
    assert (folder / "ckpt.pgolf").stat().st_size <= 9000


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("pack", "nothing.pt"), 3, "nothing.pt"),
        (("train", "--preset", "golf", "-o", "run"), 2, "--preset golf needs --data DIR"),
        (("inspect", "--no-such"), 2, "--no-such"),
        pytest.param(("inspect", "nothing.pgolf"), 3, "nothing.pgolf", marks=pytest.mark.slow),
        pytest.param(
            ("pack", "ckpt.pt", "--budget", "100", "--method", "sdclip"), 4, "does not fit", marks=pytest.mark.slow
        ),
    ],
)
def test_a_mistake_is_told_once_and_ends_all_ranks_alike(
    folder: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    codes, out, errors = ended(started(folder, *words))
    told = [line for line in errors.splitlines() if "the others wait" not in line]
    assert (codes, out) == ([code, code], "")
    assert len(told) == 1
    assert told[0].startswith("pgolf: ")
    assert says in told[0]


def test_a_mistake_of_one_rank_ends_the_other_that_waits_for_it(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    began = time.monotonic()
    codes, out, errors = ended(started(folder, *PACK, places=[folder, bare]))
    assert (codes, out) == ([3, 3], "")
    assert errors.startswith("pgolf: rank 1: --model toy.py: no such file")
    assert errors.count("\n") == 1
    assert time.monotonic() - began < 60
    assert not list(folder.glob("*.pgolf"))


EVAL = ("eval", "ckpt.pt", "--model", "toy.py:Toy", "--data", "val.bin", "--bytes", "bytes.bin", "--seq-len", "64")


def test_ranks_share_the_windows_of_a_score_and_give_the_bits_of_one(folder: Path) -> None:
    codes, out, errors = ended(started(folder, *EVAL, "--audit", "-o", "two.json"))
    assert (codes, errors) == ([0, 0], "")
    assert out.count("bpb ") == 1
    command, environment = [sys.executable, "-m", "pgolf", *EVAL, "--audit"], os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "-o", "one.json"], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    one, two = (json.loads((folder / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one.pop("tokens_per_second") > 0 < two.pop("tokens_per_second")
    assert without_times(one) == without_times(two)


def test_what_one_rank_does_alone_knows_no_job(folder: Path) -> None:
    words = (
        "sweep",
        "ckpt.pt",
        *EVAL[2:],
        "--methods",
        "gptq:int6",
        "--bits",
        "4",
        "--baseline",
        "none",
        "--calib",
        "val.bin",
    )
    codes, out, errors = ended(started(folder, *words, "--tokens", "256", "--jobs", "1", "-o", "s"))
    assert codes == [0, 0], errors
    assert out.count("written            s/") == 1
    assert errors.count("pgolf: sweep is the work of rank 0 alone") == 1


@pytest.mark.slow
@pytest.mark.parametrize("to", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_rank_ends_both_within_seconds(folder: Path, number: signal.Signals, to: int) -> None:
    jobs = started(folder, *LONG)
    time.sleep(12)
    assert [job.poll() for job in jobs] == [None, None]
    began = time.monotonic()
    jobs[to].send_signal(number)
    codes, out, errors = ended(jobs)
    assert time.monotonic() - began < 3 * in_a_job.GRACE
    gone, said = (-number, f"rank {to} ended without a word") if number == signal.SIGKILL else (130, "interrupted")
    assert (codes[to], codes[1 - to], out) == (gone, 3 if number == signal.SIGKILL else 130, "")
    assert errors.startswith("pgolf: ")
    assert said in errors
    assert errors.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".safetensors") == []


def test_only_torchrun_makes_a_job() -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2"}
    assert in_a_job.several(torchrun)
    assert not in_a_job.several({**torchrun, "WORLD_SIZE": "1"})
    assert not in_a_job.several({"RANK": "0", "WORLD_SIZE": "2"})
    assert not in_a_job.several({})


def test_alone_means_alone_for_children_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    with ranks.alone():
        assert "RANK" not in os.environ
        assert not ranks.grouped()
    assert os.environ["RANK"] == "3"
