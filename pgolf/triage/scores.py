"""What a folder claims to score, and what its logs say."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pgolf.errors import DataError, printable
from pgolf.oracle.reading import read
from pgolf.oracle.run import Run
from pgolf.submission.count import DESCRIPTION
from pgolf.triage.folders import Folder

LOGS = {".log", ".txt", ".out", ".jsonl", ".gz", ".xz", ".bz2"}
KINDS = ("ttt", "sliding", "quantized")  # of scores after packing, the one that counts first
CLAIMS = ("val_bpb", "mean_val_bpb", "val_bpb_mean", "bpb")
LEAST = 0.3  # bits per byte: what is smaller in a README is a difference
NEAR = 5e-4  # bits per byte between a claim and logs that is rounding
TOTALS = (
    "bytes_total",
    "artifact_bytes",
    "total_bytes",
    "submission_bytes",
    "artifact_bytes_max",
    "artifact_bytes_mean",
)
_README = re.compile(
    r"(?:val_bpb|\bbpb\b)[^\n\d]{0,40}(\d\.\d{3,6})(?!\d)|(\d\.\d{3,6})(?!\d)[^\n\d]{0,12}\bbpb\b", re.I
)


@dataclass(frozen=True)
class Scores:
    """claimed: by submission.json; readme: the first score of the README. recomputed: mean over the logs' runs of the score
    named `kind`. runs: how many; seeds: of these. before: mean BPB before packing. size: the largest total that a log prints.
    All None where nobody says."""

    claimed: float | None
    readme: float | None
    recomputed: float | None = None
    kind: str = ""
    runs: int = 0
    seeds: list[int] = field(default_factory=list)
    before: float | None = None
    size: int | None = None

    @property
    def said(self) -> float | None:
        """What is claimed, by the description or else the README."""
        return self.readme if self.claimed is None else self.claimed


def description(folder: Folder) -> Mapping[str, Any]:
    """submission.json, {} where it is none; a note says why."""
    name = DESCRIPTION
    if name not in folder.sizes:
        others = [other for other in folder.files if re.fullmatch(r"submission\w*\.json", other)]
        name = others[0] if len(others) == 1 else ""
        folder.notes.append(f"{DESCRIPTION} is not in the folder" + (f", {name} was read for it" if name else ""))
        if not name:
            return {}
    try:
        facts = json.loads(folder.bytes(name))
    except (ValueError, RecursionError) as error:
        folder.notes.append(f"{name} is no JSON ({printable(str(error))})")
        return {}
    if not isinstance(facts, dict):
        folder.notes.append(f"{name} is no JSON object")
        return {}
    return facts


def scores(folder: Folder, facts: Mapping[str, Any], readme: str) -> Scores:
    """What the description, the README and the logs of a folder say."""
    said = next((score for found in _README.findall(readme) if (score := float(found[0] or found[1])) > LEAST), None)
    claimed = next(filter(None, (_number(facts.get(key)) for key in CLAIMS)), None)
    runs = _ended(folder)
    if not runs:
        return Scores(claimed, said)
    kind, value = _recomputed(runs, said if claimed is None else claimed)
    before = [run.unpacked for run in runs if math.isfinite(run.unpacked)]
    return Scores(
        claimed, said, value, kind, len(runs), sorted({int(s) for run in runs if (s := run.settings.get("seed")) is not None}),
        statistics.fmean(before) if before else None, max((run.size for run in runs if run.size), default=None),
    )  # fmt: skip


def total_bytes(facts: Mapping[str, Any]) -> int | None:
    """The size that a description claims."""
    sizes = (_number(facts.get(key)) for key in TOTALS)
    return next((int(size) for size in sizes if size is not None and size > 0), None)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _ended(folder: Folder) -> list[Run]:
    """Runs with a score after packing, of all logs of a folder, each once."""
    found: dict[str, Run] = {}
    for name in [name for name in folder.files if _is_log(name)]:
        try:
            runs = read(folder.files[name])
        except DataError as error:
            if "has no line of a training step" not in str(error):
                folder.notes.append(printable(str(error).replace(str(folder.files[name]), name)))
            continue
        for run in runs:
            if math.isfinite(run.final):
                found.setdefault(f"{run.settings.get('seed')} {run.points[-3:]} {run.scores}", run)
    return list(found.values())


def _is_log(name: str) -> bool:
    return any(name.lower().endswith(suffix) for suffix in LOGS) and not name.endswith("requirements.txt")


def _recomputed(runs: list[Run], claim: float | None) -> tuple[str, float]:
    """(kind, mean over runs) of the scores that count; of another kind where that is what is claimed."""
    means = {}
    for kind in KINDS:
        values = [run.scores[kind] for run in runs if kind in run.scores]
        if values:
            means[kind] = statistics.fmean(values)
    best = min(means, key=lambda kind: means[kind])
    agreeing = [kind for kind in means if claim is not None and abs(means[kind] - claim) <= NEAR]
    kind = agreeing[0] if agreeing else best
    return kind, means[kind]
