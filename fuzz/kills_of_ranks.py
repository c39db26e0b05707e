"""Signals to one rank of two, at random moments of a run that trains, saves after every step, and packs.

    python -m fuzz.kills_of_ranks [--kills 100] [--minutes M] [--seed 0] [-o RESULT.json]

Each point sends SIGKILL, SIGTERM or SIGINT to one of the ranks. Then: both ranks are gone within seconds, nothing is
half-written, and what exists is what the run never disturbed has. Every fifth point goes on to the end, which must be that run's
to the bit, artifact included.

What will surprise you: nobody plays torchrun here. It would end the other rank itself; so that a rank which waits for ever
would not be seen. A rank that is hit while the two still look for each other leaves the other one looking: that one is ended.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine
from fuzz import kills
from pgolf.commands import in_a_job
from tests.helpers import free_port

ARGUMENTS = f"{kills.STORIES['train'].arguments} --pack 4kB"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LATE = "too late"
IN_A_ROW = 5  # signals, before a run that nobody disturbs
PATIENCE = 15.0  # seconds that the other rank has
BLINK = 0.01
MODULES = (
    *kills.STORIES["train"].modules,
    *kills.STORIES["pack"].modules,
    "torch.distributed",
    "pgolf.fitting.shared_among_ranks",
    "pgolf.quant.curvature.collect",
)


def run(points: int, seed: int, minutes: float = math.inf) -> dict[str, Any]:
    """Counts over so many signals, or as many as the minutes allow, the seconds of a whole run, and the complaints."""
    rng = np.random.default_rng(seed)
    for module in ("pgolf.cli", *MODULES):
        import_module(module)
    import_module("pgolf.train.loop.run_folder").SAVE_SECONDS = 0.0
    _note_meetings()
    seen, lost, slowest, finished = Counter[str](), list[str](), 0.0, 0
    with tempfile.TemporaryDirectory(prefix="pgolf-kills-") as place:
        before, done, folder = (Path(place) / part for part in ("before", "done", "folder"))
        before.mkdir()
        kills.STORIES["train"].begin(before)
        for _ in range(2):  # what is compiled in the first run is found by the second
            shutil.rmtree(done, ignore_errors=True)
            shutil.copytree(before, done)
            seconds = _whole(done)
        shutil.copytree(before, folder)
        number, until = 0, time.monotonic() + 60 * minutes
        while number < points and time.monotonic() < until:
            what, rank = SIGNALS[number % len(SIGNALS)], int(rng.integers(2))
            told, taken = _disturbed(folder, what, rank, float(rng.uniform(0, seconds)))
            hit = told != LATE
            number += hit
            seen[f"{what.name}: {told}" if hit else LATE] += 1
            slowest = max(slowest, taken)
            complaint = _complaint(folder, before, done) or (
                f"{what.name} to {rank}: {told}" if "hung" in told else None
            )
            if not hit or (number % IN_A_ROW == 0 and not complaint):
                finished += 1
                seconds = _whole(folder) if hit else 0.8 * seconds  # what others do on the machine has changed
                same = (folder / "run/model.pgolf").read_bytes() == (done / "run/model.pgolf").read_bytes()
                complaint = _complaint(folder, before, done) or (None if same else "another artifact")
                shutil.rmtree(folder)
                shutil.copytree(before, folder)
            if complaint:
                lost.append(complaint)
    return {
        "signals": number,
        "then_finished": finished,
        "seconds_of_a_run": round(seconds, 2),
        "slowest_end": round(slowest, 2),
        "ends": dict(sorted(seen.items())),
        "lost": lost,
    }


def _note_meetings() -> None:
    """From here on each rank leaves a file where the two have met."""
    listen = in_a_job._Job.listen

    def noted(job: in_a_job._Job) -> None:
        listen(job)
        Path(f"met{job.rank}").touch()

    in_a_job._Job.listen = noted  # type: ignore[method-assign]


def _complaint(folder: Path, before: Path, done: Path) -> str | None:
    """About what is in the folder, None where all is well."""
    artifact, whole = folder / "run" / "model.pgolf", done / "run" / "model.pgolf"
    if artifact.exists() and artifact.read_bytes() != whole.read_bytes():
        return f"model.pgolf holds {artifact.stat().st_size} bytes of something else"
    return kills.STORIES["train"].survived(folder, before, done)


def _whole(folder: Path) -> float:
    """Seconds of a run that nobody disturbs."""
    began, ranks = time.monotonic(), _started(folder)
    codes = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
    if codes != [0, 0]:
        raise RuntimeError(f"the run in {folder} ended with {codes}: {(folder / 'stderr0').read_text()}")
    return time.monotonic() - began


def _disturbed(folder: Path, what: signal.Signals, to: int, after: float) -> tuple[str, float]:
    """(how the ranks ended, seconds from the signal to the end of both)."""
    ranks = _started(folder)
    time.sleep(after)
    hit = os.waitpid(ranks[to], os.WNOHANG)[0] == 0
    if hit:
        os.kill(ranks[to], what)
    began, codes = time.monotonic(), dict[int, int]()
    if not hit:
        codes[to] = 0
    while len(codes) < 2 and time.monotonic() - began < PATIENCE:
        for rank in {0, 1} - codes.keys():
            pid, status = os.waitpid(ranks[rank], os.WNOHANG)
            if pid:
                codes[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(BLINK)
    taken, met = time.monotonic() - began, all((folder / f"met{rank}").exists() for rank in range(2))
    for rank in {0, 1} - codes.keys():
        os.kill(ranks[rank], signal.SIGKILL)
        os.waitpid(ranks[rank], 0)
    if len(codes) < 2:
        return (f"hung, only {sorted(codes)} ended", taken) if met else ("before the ranks had met", 0.0)
    if not hit:
        return LATE, taken
    return f"{codes[to]} there, {codes[1 - to]} here", taken


def _started(folder: Path) -> list[int]:
    """Both ranks, which go on with a run where there is one."""
    again = " --resume" if (folder / "run" / "state.pt").exists() else ""
    told = {
        "TORCHELASTIC_RUN_ID": "kills",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    started = []
    for rank in range(2):
        (folder / f"met{rank}").unlink(missing_ok=True)
        os.environ.update(told, RANK=str(rank), LOCAL_RANK=str(rank), OMP_NUM_THREADS="1")
        started.append(kills.start(folder, ARGUMENTS + again, f"stderr{rank}"))
    for name in (*told, "RANK", "LOCAL_RANK"):
        os.environ.pop(name)
    return started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so many, with fewer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, help="write the counts there as JSON")
    args = parser.parse_args()
    verdict = run(args.kills, args.seed, args.minutes)
    print(json.dumps(verdict), flush=True)
    if args.out:
        args.out.write_text(json.dumps({**machine(), **verdict}, indent=1) + "\n")
    return int(bool(verdict["lost"]))


if __name__ == "__main__":
    sys.exit(main())
