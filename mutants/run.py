"""`make mutants`: small faults put into what codes and decodes one at a time; a test must fail for each.

    python -m mutants.run [--minutes M] [--module NAME]... [--skip N] [--jobs J]

What will surprise you:
* Mutants are tried in one fixed shuffled order, so a run of few minutes tries a fair sample, the same one each time.
* The mutated file lies in a copy of the project, one of each job, and each mutant is tried in a fork of a process that has
  imported torch, numba and pytest but nothing of pgolf: half a second instead of five, and no state goes from one to the next.
* mutmut and cosmic-ray do not fit: mutmut calls every function through a trampoline, which neither numba nor the decoder
  stub (made of the source text) survives; cosmic-ray pays five seconds of imports for each mutant.
* Compiled loops are run as Python, or rebuilt where a constant of theirs changes: numba's cache would hide the mutant.
* Only the tests of TESTS run, those that reach the mutant's line before the others (selection.py). A mutant that none of
  them sees is listed; docs/MUTANTS.md says which of them change nothing.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path

import pytest

from mutants.operators import Mutant, mutants
from mutants.selection import Honest, Ordered, Recorder

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "pgolf"
COPIED = ("pgolf", "tests", "fuzz", "docs", "examples", "benchmarks", "mutants", "pyproject.toml", "README.md")
HEAVY = (
    "torch",
    "numpy",
    "numba",
    "scipy",
    "zstandard",
    "brotli",
    "safetensors.torch",
    "hypothesis",
    "click",
)
MEMORY = 12 << 30  # address space of one trial: a mutated size must not take the machine with it
FIRST_SECONDS = 300  # of the honest tests, which build what is compiled
PATIENCE = 5  # a trial that takes this many times the seconds of the honest code, and ten more, hangs
KILLED, SURVIVED, HUNG = "killed", "survived", "hung"
Chosen = tuple[str, Mutant]  # of a module
Result = tuple[str, Mutant, str]

# The tests of each module: its own, then a user's.
TESTS = {
    "code/minify": ("code/minify", "code/script"),
    "code/payload": ("code/script", "code/minify"),
    "code/script": ("code/script",),
    "code/stand_in": ("code/stub",),
    "code/stub": ("code/stub", "code/script"),
    "code/stub_parts": ("code/stub",),
    "code/uses": ("code/uses",),
    "code/visible": ("code/minify",),
    "code/weigh": ("code/script", "packer/artifact"),
    "common/files": ("common/files",),
    "common/threads": ("common/threads",),
    "packer/__init__": ("packer/artifact", "packer/arrays"),
    "packer/arrays": ("packer/arrays",),
    "packer/backends/host": ("packer/host", "packer/golden"),
    "packer/backends/rans_numba": ("packer/rans", "packer/classes"),
    "packer/backends/registry": ("packer/rans", "packer/host"),
    "packer/coder/aside": ("packer/classes", "packer/stream"),
    "packer/coder/classes": ("packer/classes", "packer/codec", "packer/golden"),
    "packer/coder/codec": ("packer/codec", "packer/golden"),
    "packer/coder/families": ("packer/families", "packer/stream", "packer/golden"),
    "packer/coder/layout": ("packer/rans",),
    "packer/coder/loops": ("packer/rans",),
    "packer/coder/partly": ("packer/partly",),
    "packer/coder/rans": ("packer/rans", "packer/stream", "packer/golden"),
    "packer/coder/stream": ("packer/stream", "packer/golden"),
    "packer/coder/strips": ("packer/classes", "packer/rans", "packer/golden"),
    "packer/coder/tables": ("packer/tables", "packer/stream", "packer/golden"),
    "packer/coder/trellis": ("quant/trellis", "packer/stream"),
    "packer/format/artifact": ("packer/artifact", "packer/golden"),
    "packer/format/container": ("packer/container", "packer/artifact"),
    "packer/format/partly": ("packer/partly",),
    "packer/format/shares": ("packer/shares", "packer/artifact"),
    "packer/coder/general": ("packer/general", "packer/artifact"),
    "packer/format/plain": ("packer/codec", "packer/golden"),
    "packer/plane": ("packer/plane", "packer/golden"),
    "packer/weights": ("code/stub",),
}
SLOW = "mutated_artifacts or what_pack_writes or bombs or may_lie or number_of_threads or wrap_around"  # left out
INTERPRETED = {"packer/backends/host", "packer/backends/rans_numba"}
REBUILT = {"packer/coder/layout", "packer/coder/tables"}  # compiled loops hold these modules' constants


def main() -> None:
    """Try mutants until they or the minutes are used up; print what survives, then a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--module", action="append", choices=sorted(TESTS), help="only this one; may be repeated")
    parser.add_argument("--skip", type=int, default=0, help="this many of the fixed order, tried before")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at once; one a core if not told")
    options = parser.parse_args()
    _import_heavy()
    found = [(name, m) for name in options.module or sorted(TESTS) for m in mutants(_source(ROOT, name).read_bytes())]
    random.Random(0).shuffle(found)
    with tempfile.TemporaryDirectory() as folder, get_context("fork").Pool(options.jobs) as pool:
        results = _results(pool, found[options.skip :], Path(folder), 60 * options.minutes)
    print(json.dumps(_summary(found, results)))


def _import_heavy() -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    for name in HEAVY:
        __import__(name)
    assert not any(name.startswith("pgolf") for name in sys.modules)


def _copied(tree: Path) -> Path:
    """The project in `tree`, without what was built."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)
    compileall.compile_dir(tree, quiet=2)
    return tree


def _source(root: Path, module: str) -> Path:
    return root / PACKAGE / f"{module}.py"


def _results(pool: Pool, chosen: list[Chosen], folder: Path, seconds: float) -> list[Result]:
    """What became of the mutants that the time allows; prints those that survive, in the order of `chosen`."""
    tree = _copied(folder / "honest")
    names = sorted({name for name, _ in chosen})
    for name, outcome in zip(names, pool.imap(partial(_honest, tree), names), strict=True):
        if outcome != SURVIVED:
            raise SystemExit(f"without any mutant the tests of {name} " + ("hang" if outcome == HUNG else "fail"))
    results = []
    for result in pool.imap(partial(_tried, tree, time.monotonic() + seconds), enumerate(chosen)):
        if result:
            results.append(result)
            name, mutant, outcome = result
            if outcome == SURVIVED:
                print(f"{PACKAGE}/{name}.py {mutant}", flush=True)
    return results


def _tried(tree: Path, end: float, numbered: tuple[int, Chosen]) -> Result | None:
    """What became of one mutant, tried in this process' own copy of `tree`; none after the `end`."""
    if time.monotonic() > end:
        return None
    own = tree.with_name(str(os.getpid()))
    if not own.exists():
        shutil.copytree(tree, own)
    number, (name, mutant) = numbered
    honest = Honest.read(_kept(tree, name))
    rebuilt = mutant.once and name in REBUILT
    seconds = FIRST_SECONDS if rebuilt else 10 + PATIENCE * sum(honest.seconds.values())
    with _mutated(_source(own, name), mutant, number):
        outcome = _trial(seconds, partial(_tests, own, name, Ordered(honest.order(mutant.line)), rebuilt))
    return name, mutant, outcome


@contextmanager
def _mutated(path: Path, mutant: Mutant, number: int) -> Iterator[None]:
    """The mutant in the file's place. Its time is a number of its own, by which Python and numba know what they compiled."""
    honest, time_of = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(mutant.apply(honest))
    os.utime(path, (number, number))
    yield
    path.write_bytes(honest)
    os.utime(path, ns=(time_of, time_of))


def _honest(tree: Path, module: str) -> str:
    """What becomes of the tests of a module without any fault, measured for `_kept`. This also builds what is compiled."""

    def measured() -> int:
        recorder = Recorder(_source(tree, module))
        code = _tests(tree, module, recorder, rebuilt=False)
        recorder.write(_kept(tree, module))
        return code

    return _trial(FIRST_SECONDS, measured)


def _kept(tree: Path, module: str) -> Path:
    """The file of what the honest tests of a module do."""
    return tree.with_name(f"{module.replace('/', '.')}.json")


def _trial(seconds: float, tests: Callable[[], int]) -> str:
    """What became of tests in a process of their own."""
    child = os.fork()
    if not child:
        _run(tests)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return SURVIVED if status == 0 else KILLED
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HUNG


def _run(tests: Callable[[], int]) -> None:
    """Never returns: exits with the code of `tests`."""
    code = 1
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(quiet, stream)
        code = tests()
    finally:
        os._exit(code)


def _tests(tree: Path, module: str, plugin: object, rebuilt: bool) -> int:
    """pytest's code for the tests of a module in `tree`."""
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    _numba(module, str(tree.parent / f"rebuilt-{tree.name}") if rebuilt else "")
    files = ["tests/{}/test_{}.py".format(*name.split("/")) for name in TESTS[module]]
    return int(pytest.main(["-x", "--assert=plain", "-k", f"not ({SLOW})", *files], plugins=[plugin]))


def _numba(module: str, rebuilt: str) -> None:
    from numba.core import config

    config.DISABLE_JIT = int(module in INTERPRETED)
    if rebuilt:
        shutil.rmtree(rebuilt, ignore_errors=True)
        config.CACHE_DIR = rebuilt


def _summary(found: list[Chosen], results: list[Result]) -> dict[str, object]:
    outcomes = Counter(outcome for _, _, outcome in results)
    tried, lost = Counter(name for name, _, _ in results), Counter(n for n, _, o in results if o == SURVIVED)
    return {
        "generated": len(found),
        "tried": len(results),
        **{outcome: outcomes[outcome] for outcome in (KILLED, HUNG, SURVIVED)},
        "survived of tried": {name: f"{lost[name]}/{tried[name]}" for name in sorted(tried)},
    }


if __name__ == "__main__":
    main()
