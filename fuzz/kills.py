"""kill -9 at random moments of whole commands: what was there before is there after, or the whole of what was to come.

    python -m fuzz.kills [--kills 200] [--story NAME]... [-o kills.json]

What will surprise you:
* The command runs in a fork of a process that has imported everything, since imports are where it is safe to die.
  For the same reason that process computes nothing: threads do not survive a fork.
* fsync sleeps in that fork. Writing takes a thousandth of a run; so a fair share of the kills falls into it.
* Kills pile up: after every third one the command runs to its end, and then nothing may be there but what it writes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine
from tests.helpers import TOY_MODEL, sweep_inputs, without_times

STEPS = 12
FSYNC_SECONDS = 0.05
KILLS_IN_A_ROW = 3
MOST_RUNS = 3  # for a kill: some commands end before their kill comes
_TRAIN = "train --preset tiny --data data -o run --set vocab_size=64 --set dim=32 --set heads=2 --set kv_heads=1"
_TRAIN += f" --set rope_dims=8 --set seq_len=16 --set batch_size=4 --set steps={STEPS}"
_SWEEP = "sweep ckpt.pt --model toy.py:Toy --data val.bin --bytes bytes.bin --seq-len 64 --methods gptq:int6,rtn:int8"
_SWEEP += " --bits 4,5 --baseline none --calib val.bin --tokens 512 --jobs 1 -o s"
Check = Callable[[Path, Path, Path], str | None]


@dataclass(frozen=True)
class Story:
    """begin: fills a folder; before: commands that run in it first; arguments: of the pgolf that is killed; `again`:
    where the next run differs.

    survived(folder, before, done): a complaint about what a kill left, None if all is well; before and done: the folder
    as it was, and that of a whole run.
    """

    begin: Callable[[Path], None]
    arguments: str
    survived: Check
    before: tuple[str, ...] = ()
    again: str = ""
    modules: tuple[str, ...] = field(default=())


def _toy(folder: Path) -> None:
    """A checkpoint of 20,000 weights, and an older artifact where the new one is to go."""
    import torch

    generator = torch.Generator().manual_seed(0)
    torch.save({f"w{i}": torch.randn(96, 70, generator=generator) for i in range(3)}, folder / "ckpt.pt")
    (folder / "ckpt.pgolf").write_bytes(b"the old artifact")


def _old_or_new(folder: Path, before: Path, done: Path) -> str | None:
    found = (folder / "ckpt.pgolf").read_bytes()
    whole = found in {(place / "ckpt.pgolf").read_bytes() for place in (before, done)}
    return None if whole else f"ckpt.pgolf holds {len(found)} bytes of something else"


def _shards(folder: Path) -> None:
    from pgolf.data.shards import write_shard

    (folder / "data").mkdir()
    write_shard(folder / "data" / "train_0.bin", np.random.default_rng(0).integers(0, 64, 2000))


def _loadable(folder: Path, before: Path, done: Path) -> str | None:
    """Both files of a run, where they exist, load; a whole run's weights and log are those of the run never killed."""
    import torch

    run = folder / "run"
    try:
        found = {path.name: torch.load(path, weights_only=True) for path in run.glob("*.pt")}
    except Exception as error:
        return f"a file of the run is damaged: {error}"
    finished = "state.pt" in found and found["state.pt"]["trainer"]["step"] == STEPS
    if not finished or "checkpoint.pt" not in found:
        return None
    if found["checkpoint.pt"]["config"] is None:
        return "the checkpoint lost its configuration"
    if _losses(run) != _losses(done / "run"):
        return "the log of the run lost steps"
    whole = torch.load(done / "run" / "checkpoint.pt", weights_only=True)["model"]
    same = all(torch.equal(whole[name], tensor) for name, tensor in found["checkpoint.pt"]["model"].items())
    return None if same or _older(run) else "the resumed run ended elsewhere"


def _losses(run: Path) -> list[tuple[int, float]]:
    lines = (run / "train.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, lines)]


def _older(run: Path) -> bool:
    """Whether the checkpoint was written before the state: the kill fell between them."""
    return (run / "checkpoint.pt").stat().st_mtime_ns < (run / "state.pt").stat().st_mtime_ns


def _points(folder: Path, before: Path, done: Path) -> str | None:
    """Every file of a sweep that exists says, times aside, what that of the sweep never killed says."""
    for path in sorted((folder / "s").rglob("*.json")):
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            return f"{path.name} is damaged: {error}"
        if without_times(found) != without_times(json.loads((done / path.relative_to(folder)).read_text())):
            return f"{path.name} holds other figures"
    for name in ("curvature.safetensors", "frontier.png"):
        path = folder / "s" / name
        if path.exists() and path.read_bytes() != (done / "s" / name).read_bytes():
            return f"{name} holds something else"
    return None


def _scripts(folder: Path) -> None:
    _toy(folder)
    load = "import pgolf\nstate = pgolf.load('ckpt.pgolf')\n"
    (folder / "old.py").write_text(load)
    (folder / "new.py").write_text(f"{load}print(len(state))\n{TOY_MODEL}")


def _either_folder(folder: Path, before: Path, done: Path) -> str | None:
    found = _contents(folder / "out")
    return None if found in (_contents(before / "out"), _contents(done / "out")) else f"out holds {sorted(found)}"


def _contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


_PACKING = ("pgolf.fitting.packing", "pgolf.quant.rounding.viterbi", "pgolf.packer.backends.rans_numba")
STORIES = {
    "pack": Story(_toy, "pack ckpt.pt --budget 9kB --force", _old_or_new, modules=_PACKING),
    "train": Story(
        _shards,
        _TRAIN,
        _loadable,
        again=_TRAIN + " --resume",
        modules=("pgolf.train.loop.run_folder", "matplotlib.pyplot"),
    ),
    "sweep": Story(
        sweep_inputs,
        _SWEEP,
        _points,
        modules=(
            *_PACKING,
            "pgolf.sweep.run",
            "pgolf.scoring.bpb",
            "pgolf.quant.curvature.collect",
            "matplotlib.pyplot",
        ),
    ),
    "export": Story(
        _scripts,
        "export ckpt.pgolf --script new.py -o out --force",
        _either_folder,
        before=("pack ckpt.pt --budget 9kB --force", "export ckpt.pgolf --script old.py -o out"),
        modules=(*_PACKING, "pgolf.submission.export", "python_minifier"),
    ),
}


def run(name: str, kills: int, seed: int) -> dict[str, Any]:
    """Counts of one story; its "lost" lists complaints."""
    story, rng = STORIES[name], np.random.default_rng(seed)
    for module in ("pgolf.cli", *story.modules):
        import_module(module)
    with tempfile.TemporaryDirectory(prefix="pgolf-kills-") as place:
        before, done, folder = (Path(place) / part for part in ("before", "done", "folder"))
        before.mkdir()
        story.begin(before)
        for command in story.before:
            _run_whole(before, command)
        for _ in range(2):  # what is compiled in the first run is found by the second, as by those to be killed
            shutil.rmtree(done, ignore_errors=True)
            shutil.copytree(before, done)
            seconds = _run_whole(done, story.arguments)
        shutil.copytree(before, folder)
        killed, finished, number, lost = 0, 0, 0, []
        while killed < kills and number < MOST_RUNS * kills:
            number += 1
            killed += _run_and_kill(folder, _arguments(story, folder), float(rng.uniform(0, seconds)))
            complaint = story.survived(folder, before, done)
            if number % KILLS_IN_A_ROW == 0 and not complaint:
                finished += 1
                complaint = _finish(story, folder, before, done)
                shutil.rmtree(folder)
                shutil.copytree(before, folder)
            if complaint:
                lost.append(complaint)
        counts = {"runs": number, "killed": killed, "then_finished": finished, "seconds_of_a_run": round(seconds, 2)}
        return {"story": name, **counts, "lost": lost}


def _arguments(story: Story, folder: Path) -> str:
    return story.again if story.again and (folder / "run" / "state.pt").exists() else story.arguments


def _finish(story: Story, folder: Path, before: Path, done: Path) -> str | None:
    """A complaint about the run that nobody kills, after those that were."""
    _run_whole(folder, _arguments(story, folder))
    left = {p.relative_to(folder) for p in folder.rglob("*")} ^ {p.relative_to(done) for p in done.rglob("*")}
    return f"left behind or missing: {sorted(map(str, left))}" if left else story.survived(folder, before, done)


def _run_whole(folder: Path, arguments: str) -> float:
    began = time.monotonic()
    _, status = os.waitpid(start(folder, arguments), 0)
    if status:
        raise RuntimeError(f"pgolf {arguments} failed in {folder}: {(folder / 'stderr').read_text()}")
    (folder / "stderr").unlink()
    return time.monotonic() - began


def _run_and_kill(folder: Path, arguments: str, after: float) -> bool:
    """Whether the command still ran when it was killed."""
    child = start(folder, arguments)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    (folder / "stderr").unlink(missing_ok=True)
    return os.WIFSIGNALED(status)


def start(folder: Path, arguments: str, errors: str = "stderr") -> int:
    """The process that runs the command; errors: the file of what it says of them."""
    child = os.fork()
    if child:
        return child
    try:
        os.chdir(folder)
        sys.stderr = open(errors, "w")  # noqa: SIM115 - the process ends with it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        synced = os.fsync
        os.fsync = lambda fd: (time.sleep(FSYNC_SECONDS), synced(fd), time.sleep(FSYNC_SECONDS))[1]
        code = import_module("pgolf.cli").main(arguments.split(), standalone_mode=False) or 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        code = 1
    sys.stderr.flush()
    os._exit(code)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="spread over the stories")
    parser.add_argument("--story", action="append", choices=list(STORIES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, help="write the counts there as JSON")
    args = parser.parse_args()
    names, verdicts = args.story or list(STORIES), []
    for name in names:
        verdicts.append(run(name, args.kills // len(names), args.seed))
        print(json.dumps(verdicts[-1]), flush=True)
    if args.out:
        total = sum(verdict["killed"] for verdict in verdicts)
        args.out.write_text(json.dumps({**machine(), "killed": total, "stories": verdicts}, indent=1) + "\n")
    return int(any(verdict["lost"] for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
