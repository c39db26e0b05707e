"""`make fuzz`: damaged inputs by the hundred thousand. Every one is read exactly or refused by one typed error.

    python -m fuzz.run [--inputs 100000] [--minutes M] [--target NAME]... [--guided]

What will surprise you:
* Each target runs in its own process, so that a hang, a crash of the interpreter or a swallowed gigabyte is seen.
* Memory is counted twice: Python's and numpy's allocations at their peak, and the process's resident pages, since
  torch and the decompressors allocate behind Python's back.
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.targets import TARGETS, Target
from pgolf.errors import PgolfError

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 5  # for one input
SLACK_BYTES = 1 << 20  # beyond twice the honest peak: interpreter noise
RESIDENT_KIB = 1 << 17  # growth of the process: torch's and numba's lazy imports among it


class Broken(Exception):
    """A promise that an input broke."""


def outcome(target: Target, data: bytes) -> Any:
    """What the reader makes of `data`; None if it refused it. Raises Broken for anything else."""
    try:
        with _alarm():
            return target.read(data)
    except PgolfError as error:
        if "\n" in str(error).strip():
            raise Broken(f"a message of several lines: {error}") from error
        return None
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
    """Counts of one target; stops at the first broken promise, whose input is kept in the corpus."""
    target, rng = TARGETS[name], np.random.default_rng(seed)
    seeds = target.seeds()
    meanings, honest = [target.read(seed) for seed in seeds], honest_peak(target)
    resident, began = _resident_kib(), time.monotonic()
    counts = {"target": name, "inputs": 0, "accepted": 0, "refused": 0, "slowest_s": 0.0, "honest_peak_bytes": honest}
    while counts["inputs"] < inputs and time.monotonic() - began < seconds:
        which = int(rng.integers(len(seeds)))
        data = target.mutators[counts["inputs"] % len(target.mutators)](seeds[which], rng)
        start = time.monotonic()
        try:
            found = judge(target, data, honest)
            if target.sealed and found is not None and found != meanings[which]:
                raise Broken("accepted, with another meaning")
            if _resident_kib() - resident > RESIDENT_KIB:
                raise Broken("the process has grown")
        except Broken as error:
            return counts | {"broken": str(error), "kept": str(keep(name, data)), "trace": traceback.format_exc()}
        counts["inputs"] += 1
        counts["refused" if found is None else "accepted"] += 1
        counts["slowest_s"] = max(counts["slowest_s"], round(time.monotonic() - start, 3))
    return counts | {"seconds": round(time.monotonic() - began, 1), "grown_kib": _resident_kib() - resident}


def judge(target: Target, data: bytes, honest: int) -> Any:
    """`outcome`, and Broken too if more than twice `honest` bytes were allocated on the way."""
    tracemalloc.start()
    try:
        found = outcome(target, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak > 2 * honest + SLACK_BYTES:
        raise Broken(f"{peak} bytes allocated, where honest inputs take {honest}")
    return found


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
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        inputs = args.inputs * (10 if args.child == "artifact" else 1)
        print(json.dumps(hammer(args.child, inputs, args.minutes * 60, args.seed)))
        return 0
    return max(_run_child(name, args) for name in args.target or TARGETS)


def _run_child(name: str, args: argparse.Namespace) -> int:
    """0 if the target kept every promise. A child that dies without a verdict broke one."""
    if args.guided:
        return subprocess.run([sys.executable, "-m", "fuzz.guided", name, str(args.minutes)], check=False).returncode
    options = ["--inputs", str(args.inputs), "--minutes", str(args.minutes), "--seed", str(args.seed)]
    child = subprocess.run(
        [sys.executable, "-m", "fuzz.run", "--child", name, *options], capture_output=True, text=True, check=False
    )
    if child.returncode:
        print(f"{name}: the process died with {child.returncode}\n{child.stderr}")
        return 1
    verdict = json.loads(child.stdout.splitlines()[-1])
    print(json.dumps(verdict), flush=True)
    return int("broken" in verdict)


if __name__ == "__main__":
    sys.exit(main())
