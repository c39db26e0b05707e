"""kill -9 at random moments of whole commands: what was there before is there after, or the whole of what was to come.

    python -m fuzz.kills [--kills 200] [--story NAME]...

What will surprise you:
* The command runs in a fork of a process that has imported everything, since imports are where it is safe to die.
* fsync sleeps in that fork. Writing takes a thousandth of a run; so a fair share of the kills falls into it.
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

import numpy as np

STEPS = 12
FSYNC_SECONDS = 0.05
_TRAIN = "train --preset tiny --data data -o run --set vocab_size=64 --set dim=32 --set heads=2 --set kv_heads=1"
_TRAIN += f" --set rope_dims=8 --set seq_len=16 --set batch_size=4 --set steps={STEPS}"
Check = Callable[[Path, Path], str | None]


@dataclass(frozen=True)
class Story:
    """arguments: of pgolf, in a folder that `begin` filled; `again`: where the next run differs.

    survived(folder, done): a complaint about what a kill left, None if all is well; done: the folder of a whole run.
    """

    begin: Callable[[Path], None]
    arguments: str
    survived: Check
    again: str = ""
    modules: tuple[str, ...] = field(default=())


def _toy(folder: Path) -> None:
    """A checkpoint of 20,000 weights, and an older artifact where the new one is to go."""
    import torch

    generator = torch.Generator().manual_seed(0)
    torch.save({f"w{i}": torch.randn(96, 70, generator=generator) for i in range(3)}, folder / "ckpt.pt")
    (folder / "ckpt.pgolf").write_bytes(b"the old artifact")


def _old_or_new(folder: Path, done: Path) -> str | None:
    found = (folder / "ckpt.pgolf").read_bytes()
    whole = found in (b"the old artifact", (done / "ckpt.pgolf").read_bytes())
    return None if whole else f"ckpt.pgolf holds {len(found)} bytes of something else"


def _shards(folder: Path) -> None:
    from pgolf.train.data import write_shard

    (folder / "data").mkdir()
    write_shard(folder / "data" / "train_0.bin", np.random.default_rng(0).integers(0, 64, 2000))


def _loadable(folder: Path, done: Path) -> str | None:
    """Both files of a run, where they exist, load; a whole run's weights are those of the run never killed."""
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
    whole = torch.load(done / "run" / "checkpoint.pt", weights_only=True)["model"]
    same = all(torch.equal(whole[name], tensor) for name, tensor in found["checkpoint.pt"]["model"].items())
    return None if same or _older(run) else "the resumed run ended elsewhere"


def _older(run: Path) -> bool:
    """Whether the checkpoint was written before the state: the kill fell between them."""
    return (run / "checkpoint.pt").stat().st_mtime_ns < (run / "state.pt").stat().st_mtime_ns


STORIES = {
    "pack": Story(
        _toy, "pack ckpt.pt --budget 9kB --force", _old_or_new, modules=("pgolf.pipeline", "pgolf.quant.trellis")
    ),
    "train": Story(
        _shards, _TRAIN, _loadable, again=_TRAIN + " --resume", modules=("pgolf.train.run", "matplotlib.pyplot")
    ),
}


def run(name: str, kills: int, seed: int) -> dict[str, object]:
    """Counts of one story; its "lost" lists complaints."""
    story, rng = STORIES[name], np.random.default_rng(seed)
    for module in ("pgolf.cli", *story.modules):
        import_module(module)
    with tempfile.TemporaryDirectory(prefix="pgolf-kills-") as place:
        fresh, done, folder = (Path(place) / part for part in ("fresh", "done", "folder"))
        fresh.mkdir()
        story.begin(fresh)
        shutil.copytree(fresh, done)
        seconds = _run_whole(done, story.arguments)
        shutil.copytree(fresh, folder)
        killed, lost = 0, []
        for number in range(kills):
            arguments = story.again if story.again and (folder / "run" / "state.pt").exists() else story.arguments
            killed += _run_and_kill(folder, arguments, float(rng.uniform(0, seconds)))
            complaint = story.survived(folder, done)
            if number % 10 == 9 and not complaint:
                complaint = _finish(story, folder, done)
                shutil.rmtree(folder)
                shutil.copytree(fresh, folder)
            if complaint:
                lost.append(complaint)
        return {"story": name, "runs": kills, "killed": killed, "seconds_of_a_run": round(seconds, 2), "lost": lost}


def _finish(story: Story, folder: Path, done: Path) -> str | None:
    """A complaint about the run that nobody kills, after those that were."""
    _run_whole(folder, story.again if story.again and (folder / "run" / "state.pt").exists() else story.arguments)
    left = {p.relative_to(folder) for p in folder.rglob("*")} - {p.relative_to(done) for p in done.rglob("*")}
    return f"left behind: {sorted(map(str, left))}" if left else story.survived(folder, done)


def _run_whole(folder: Path, arguments: str) -> float:
    began = time.monotonic()
    _, status = os.waitpid(_start(folder, arguments), 0)
    if status:
        raise RuntimeError(f"pgolf {arguments} failed in {folder}: {(folder / 'stderr').read_text()}")
    (folder / "stderr").unlink()
    return time.monotonic() - began


def _run_and_kill(folder: Path, arguments: str, after: float) -> bool:
    """Whether the command still ran when it was killed."""
    child = _start(folder, arguments)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    (folder / "stderr").unlink(missing_ok=True)
    return os.WIFSIGNALED(status)


def _start(folder: Path, arguments: str) -> int:
    """The process that runs the command."""
    child = os.fork()
    if child:
        return child
    try:
        os.chdir(folder)
        sys.stderr = open("stderr", "w")  # noqa: SIM115 - the process ends with it
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
    args = parser.parse_args()
    names = args.story or list(STORIES)
    verdicts = [run(name, args.kills // len(names), args.seed) for name in names]
    for verdict in verdicts:
        print(json.dumps(verdict))
    return int(any(verdict["lost"] for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
