"""Which results are older than the code that they measure: `make figures`.

    python benchmarks/figures.py [--all | --table]

For each JSON of results/: the commit and date that it names, or else those of the commit that wrote it, its command, and how many
commits have changed since then what it depends on (SOURCES). --all lists those too that nothing has changed, --table
writes the table of docs/MEASURED.md. Without git, as in an
unpacked archive, changes are not known, and it says so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

PACKING = ("pgolf/quant", "pgolf/fitting", "pgolf/packer")
TRAINING = ("pgolf/train",)
RIVALS = ("benchmarks/rival_quantizers.py", "benchmarks/published.py", *PACKING)


class Source(NamedTuple):
    """command: after `python`, of a result that does not name its own. code: what it depends on besides the script in it."""

    command: str
    code: tuple[str, ...]

    @property
    def paths(self) -> list[str]:
        return [word.split(":")[0] for word in self.command.split() if word.startswith("benchmarks/")] + list(self.code)


# Whoever adds a result adds its line.
SOURCES = {
    "ablation_golf3m": Source("benchmarks/ablation.py", PACKING),
    "ablation_llama": Source(
        "benchmarks/ablation.py --ckpt llama --seq-len 256", ("benchmarks/hf_folder.py", *PACKING)
    ),
    "calibration_golf3m": Source("benchmarks/calibration.py", PACKING),
    "caseops": Source("benchmarks/caseops.py", ("pgolf/data", *TRAINING)),
    "closed_loop": Source("benchmarks/closed_loop.py", PACKING),
    "coder": Source("benchmarks/coder.py", ("pgolf/packer",)),
    "contest_stack": Source("benchmarks/contest_stack.py --minutes 22 --contest", PACKING),
    "exported_records": Source("benchmarks/exported_records.py RECORDS --audit", ("pgolf/submission", "pgolf/code")),
    "fuzz": Source("-m fuzz.run", ("fuzz", "pgolf/packer/format", "pgolf/models")),
    "gradients_golf3m": Source("benchmarks/gradients.py", ("pgolf/quant/curvature",)),
    "headline": Source("benchmarks/headline.py", PACKING),
    "kills": Source("-m fuzz.kills --kills 200", ("fuzz/kills.py", "pgolf/common/files.py", "pgolf/common/folders.py")),
    "kills_of_ranks": Source(
        "-m fuzz.kills_of_ranks",
        ("fuzz/kills_of_ranks.py", "pgolf/commands/in_a_job.py", "pgolf/train/loop", "pgolf/common"),
    ),
    "limit": Source("benchmarks/limit.py", ("pgolf/quant/methods", "pgolf/quant/rounding", "pgolf/packer/coder")),
    "memory": Source("benchmarks/memory.py", PACKING),
    "modelling": Source("benchmarks/modelling.py", (*TRAINING, *PACKING)),
    "oracle": Source("benchmarks/oracle.py --write", ("benchmarks/oracle_runs.py", "pgolf/oracle")),
    "pack36m": Source("benchmarks/pack36m.py", PACKING),
    "qat": Source("benchmarks/qat.py", (*TRAINING, *PACKING)),
    "qat_overhead": Source("-m pgolf bench --only qat", ("pgolf/bench", "pgolf/train/qat")),
    "ranks": Source(
        "benchmarks/ranks.py",
        ("pgolf/common/ranks.py", "pgolf/fitting/shared_among_ranks.py", "pgolf/quant/curvature/across_ranks.py"),
    ),
    "reprice": Source("benchmarks/reprice.py", PACKING),
    "rivals_golf3m": Source("benchmarks/rivals.py", RIVALS),
    "rivals_gpt2": Source("benchmarks/rivals.py --ckpt gpt2 --seq-len 256", ("benchmarks/hf_folder.py", *RIVALS)),
    "rivals_llama": Source("benchmarks/rivals.py --ckpt llama --seq-len 256", ("benchmarks/hf_folder.py", *RIVALS)),
    "rivals_stack": Source(
        "benchmarks/rivals.py --ckpt .scratch/contest_stack.pt --model benchmarks/contest_stack.py:stack", RIVALS
    ),
    "small": Source("-m pgolf train --preset small --data ../shared/data", TRAINING),
    "sweep_golf3m": Source("-m pgolf sweep", ("pgolf/sweep", *PACKING)),
    "tax_golf3m": Source("benchmarks/tax.py", PACKING),
    "tiny": Source("benchmarks/tiny.py", TRAINING),
    "ttt_golf3m": Source("benchmarks/ttt.py", ("pgolf/scoring",)),
    "tuned_ranks": Source("benchmarks/tuned_ranks.py", ("pgolf/fitting/closed",)),
    "twins": Source("benchmarks/twins.py", PACKING),
    "width": Source("benchmarks/width.py", (*TRAINING, *PACKING)),
    "width_large": Source("benchmarks/width.py --steps 500", (*TRAINING, *PACKING)),
}


@dataclass(frozen=True)
class Figure:
    """A result. commit, date: "" where nobody knows. changes: commits since then to what it depends on; None: not known."""

    name: str
    commit: str
    date: str
    command: str
    changes: int | None

    @property
    def stale(self) -> bool:
        return bool(self.changes)


def git(*words: str) -> str | None:
    """What git says of this checkout; None where there is none, or it does not know."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def head(facts: Any) -> dict[str, str]:
    """commit, date and command that a result names, wherever it has them."""
    places = [facts, facts.get("machine")] if isinstance(facts, dict) else []
    found = {key: place[key] for place in places if isinstance(place, dict) for key in place if isinstance(key, str)}
    return {key: str(found.get(key) or "") for key in ("commit", "date", "command")}


def figure(path: Path) -> Figure:
    """Of one JSON. In a shallow clone history is not known."""
    name, said = path.stem, head(json.loads(path.read_text()))
    wrote = (git("log", "-1", "--abbrev=7", "--format=%h %cs", "--", str(path)) or " ").split(" ")
    commit, source = said["commit"].rstrip("+") or wrote[0], SOURCES[name]
    whole = git("rev-parse", "--is-shallow-repository") == "false"
    since = git("rev-list", "--count", f"{commit}..HEAD", "--", *source.paths) if commit and whole else None
    changes = None if since is None else int(since)
    return Figure(name, commit, said["date"] or wrote[-1], said["command"] or f"python {source.command}", changes)


def lines(figures: list[Figure], *, every: bool) -> list[str]:
    """A line for each result whose code changed since, or for each; then what is to be said of all."""
    told = [
        f"{f.name:20} {f.commit[:9] or '-':10} {f.date or '-':11} "
        f"{'not known' if f.changes is None else f'{f.changes} changes since' if f.changes else 'up to date':18} {f.command}"
        for f in figures
        if every or f.stale
    ]
    stale, unknown = sum(f.stale for f in figures), sum(f.changes is None for f in figures)
    told.append(f"{stale} of {len(figures)} results are older than a change of the code that they measure")
    if unknown:
        told.append(f"of {unknown} it is not known: no git history here, or their commit is not in it")
    return told


def table(figures: list[Figure]) -> list[str]:
    """The same for docs/MEASURED.md, without what only holds today."""
    rows = [f"| {f.name} | {f.commit} | {f.date} | `{f.command}` |" for f in figures]
    return ["| result | commit | date | command |", "|---|---|---|---|", *rows]


def found() -> list[Figure]:
    """Of every JSON of results/."""
    return [figure(path) for path in sorted(RESULTS.glob("*.json"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="list those too that nothing has changed")
    parser.add_argument("--table", action="store_true", help="as Markdown")
    args = parser.parse_args()
    print("\n".join(table(found()) if args.table else lines(found(), every=args.all)))


if __name__ == "__main__":
    main()
