"""`make fuzz`: damaged inputs by the hundred thousand. Every one is read exactly or refused by one typed error.

    python -m fuzz.run [--inputs 100000] [--minutes M] [--target NAME]... [--guided]

What will surprise you:
* Each target runs in its own process, so that a hang, a crash of the interpreter or a swallowed gigabyte is seen.
* Memory is counted twice: Python's and numpy's allocations at their peak, and the process's resident pages, since
  torch and the decompressors allocate behind Python's back. Counting costs the process itself about 3 KB an input.
* An input that breaks a promise is kept in fuzz/corpus/TARGET/; the test suite reads all of them again, for ever.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import signal
import subprocess
import sys
import time
import traceback
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.targets import TARGETS, Target
from pgolf.errors import PgolfError

CORPUS = Path(__file__).parent / "corpus"
FOUND = Path(__file__).parent / "found"
MOST_BROKEN = 5  # promises of one target, before the rest is a waste of time
SECONDS = 5  # for one input
SLACK_BYTES = 1 << 20  # beyond twice the honest peak: interpreter noise
RESIDENT_KIB = 1 << 17  # growth of the process by one input: torch's and numba's lazy imports among it


class Broken(Exception):
    """A promise that an input broke."""


def outcome(target: Target, data: bytes) -> tuple[Any, str | None]:
    """(what the reader makes of `data`, None), or (None, the name of its refusal). Raises Broken for anything else."""
    try:
        with _alarm():
            return target.read(data), None
    except PgolfError as error:
        if not str(error).isprintable():
            raise Broken(f"a message of several lines, or that moves the cursor: {error}") from error
        return None, type(error).__name__
    except Broken:
        raise
    except BaseException as error:
        raise Broken(f"{type(error).__name__}: {error}") from error


@contextmanager
def _alarm():
    def ring(*_):
        raise Broken(f"longer than {SECONDS} s")

    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def hammer(name: str, inputs: int, seconds: float, seed: int) -> dict[str, Any]:
    """Counts of one target. It goes on after a broken promise, whose input is kept in the corpus, up to MOST_BROKEN."""
    target, rng = TARGETS[name], np.random.default_rng(seed)
    seeds = target.seeds()
    meanings, honest = [target.read(seed) for seed in seeds], honest_peak(target)
    at_first, began, tally = _resident_kib(), time.monotonic(), Tally(name, honest)
    while tally.inputs < inputs and time.monotonic() - began < seconds and len(tally.broken) < MOST_BROKEN:
        which = int(rng.integers(len(seeds)))
        data = target.mutators[tally.inputs % len(target.mutators)](seeds[which], rng)
        _last(name).write_bytes(data)  # for the parent, should this process die of it
        resident, start = _resident_kib(), time.monotonic()
        try:
            verdict = judge(target, data, honest)
            if target.sealed and verdict.error is None and verdict.meaning != meanings[which]:
                raise Broken("accepted, with another meaning")
            if _resident_kib() - resident > RESIDENT_KIB:
                raise Broken("the process has grown")
            tally.count(verdict, time.monotonic() - start)
        except Broken as error:
            tally.count(None, time.monotonic() - start)
            tally.broken.append({"what": str(error), "kept": str(keep(name, data)), "trace": traceback.format_exc()})
    _last(name).unlink(missing_ok=True)
    return vars(tally) | {"seconds": round(time.monotonic() - began, 1), "grown_kib": _resident_kib() - at_first}


@dataclass(frozen=True)
class Verdict:
    """What came of one input: its meaning, or the name of the error that refused it; peak: bytes allocated on the way."""

    meaning: Any
    error: str | None
    peak: int


@dataclass
class Tally:
    """Counts of one target. refused: by kind of error; slowest_s: of one input; peak_bytes: the largest allocation,
    honest_peak_bytes: of a seed."""

    target: str
    honest_peak_bytes: int
    inputs: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    peak_bytes: int = 0
    broken: list[dict[str, str]] = field(default_factory=list)

    def count(self, verdict: Verdict | None, seconds: float) -> None:
        self.inputs += 1
        self.slowest_s = max(self.slowest_s, round(seconds, 3))
        if verdict is None:
            return
        self.peak_bytes = max(self.peak_bytes, verdict.peak)
        if verdict.error is None:
            self.accepted += 1
        else:
            self.refused[verdict.error] += 1


def _last(name: str) -> Path:
    path = FOUND / name / "last"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def judge(target: Target, data: bytes, honest: int) -> Verdict:
    """What became of one input. Raises Broken for whatever `outcome` does, and for more than twice `honest` bytes."""
    tracemalloc.start()
    try:
        meaning, error = outcome(target, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak > 2 * honest + SLACK_BYTES:
        raise Broken(f"{peak} bytes allocated, where honest inputs take {honest}")
    return Verdict(meaning, error, peak)


def honest_peak(target: Target) -> int:
    """The most bytes that reading one of the seeds allocates."""
    peaks = []
    for seed in target.seeds():
        target.read(seed)
        tracemalloc.start()
        target.read(seed)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return max(peaks)


def _resident_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def keep(name: str, data: bytes) -> Path:
    """Where an input was kept."""
    path = CORPUS / name / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="of each target (artifact: ten times as many)")
    parser.add_argument("--minutes", type=float, default=60, help="at most, of each target")
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true", help="by coverage, with atheris (pip install atheris)")
    parser.add_argument("-o", "--out", type=Path, help="write the counts there as JSON; targets already in it stay")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        inputs = args.inputs * (10 if args.child == "artifact" else 1)
        print(json.dumps(hammer(args.child, inputs, args.minutes * 60, args.seed)))
        return 0
    if args.guided:
        return max(_guided(name, args.minutes) for name in args.target or TARGETS)
    return max([_run_child(name, args) for name in args.target or TARGETS])


def _guided(name: str, minutes: float) -> int:
    return subprocess.run([sys.executable, "-m", "fuzz.guided", name, str(minutes)], check=False).returncode


def _run_child(name: str, args: argparse.Namespace) -> int:
    """0 if the target kept every promise. A child that dies or hangs without a verdict broke one."""
    options = ["--inputs", str(args.inputs), "--minutes", str(args.minutes), "--seed", str(args.seed)]
    command = [sys.executable, "-m", "fuzz.run", "--child", name, *options]
    try:
        patience = 60 * args.minutes + 120
        child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience)
    except subprocess.TimeoutExpired:
        print(f"{name}: the process hangs in an input, kept as {keep(name, _last(name).read_bytes())}")
        return 1
    if child.returncode:
        kept = keep(name, _last(name).read_bytes()) if _last(name).exists() else "none"
        print(f"{name}: the process died with {child.returncode} of an input, kept as {kept}\n{child.stderr}")
        return 1
    verdict = json.loads(child.stdout.splitlines()[-1])
    print(json.dumps(verdict), flush=True)
    if args.out:
        _record(args.out, verdict)
    return int(bool(verdict["broken"]))


def _record(path: Path, verdict: dict[str, Any]) -> None:
    """Put one target's counts into the results file."""
    from benchmarks.common import machine

    results = json.loads(path.read_text()) if path.exists() else {"targets": {}}
    results |= machine()
    results["targets"][verdict["target"]] = verdict
    found = results["targets"].values()
    results["inputs"] = sum(v["inputs"] for v in found)
    results["slowest_s"] = max(v["slowest_s"] for v in found)
    path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
