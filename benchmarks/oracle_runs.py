"""Figures of contest runs as rows that the oracle is fitted on: which runs count, where a knot lies, what was scored."""

from __future__ import annotations

import csv
import gzip
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgolf.oracle.features import USUAL_CAP, expected_steps, features
from pgolf.oracle.logs import SETTINGS
from pgolf.oracle.run import Run

FIGURES = Path(__file__).resolve().parents[2] / "shared" / "data" / "oracle"
PLANNED = (2500, 25000)  # expected steps of the runs that are fitted
USED = 0.9  # of its time, where a run is not 0.8 through its steps: with less it was stopped by hand


@dataclass
class Row:
    """A run at a knot."""

    folder: str
    author: str
    pr: float
    found: dict[str, float]
    score: dict[str, float]  # log BPB by target, NaN where unknown


def figures() -> Iterator[tuple[dict[str, str], Run]]:
    """(figures, run without its scores) of every run that no flag is on."""
    points: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    with gzip.open(FIGURES / "curve.csv.gz", "rt") as file:
        for line in csv.DictReader(file):
            cells = (line[k] for k in ("step", "train_time_ms", "train_loss", "val_bpb"))
            points[line["id"]].append(tuple(float(c) if c else math.nan for c in cells))  # type: ignore[arg-type]
    with (FIGURES / "runs.csv").open() as file:
        for facts in csv.DictReader(file):
            if not facts["doubt"]:
                settings = {key: float(facts[key]) for key in SETTINGS if facts[key]}
                nats = number(facts["bpb_per_nat"])
                yield facts, Run(facts["id"], points[facts["id"]], settings, nats=nats)


def number(cell: str) -> float:
    return float(cell) if cell else math.nan


def scores(facts: dict[str, str]) -> dict[str, float]:
    """log BPB by target."""
    unpacked = number(facts["post_ema_bpb"] or facts["final_prequant_bpb"])
    return {"unpacked": math.log(unpacked), "final": math.log(number(facts["final_bpb"]))}


def rows_at(runs: list[tuple[dict[str, str], Run]], knot: str, validated: bool, *, stopped: bool = False) -> list[Row]:
    """Every run that was to last as long as the fitted ones, reached the knot and was not stopped by hand (stopped: those too).
    How far off the expected steps were is no reason to leave a run out: those that slow down on their way are among them."""
    rows = []
    for facts, run in runs:
        step, done = step_of(run, knot), number(facts["steps_total"])
        if not 0 < 1.02 * step <= done:
            continue
        seen = run.until(int(step))
        total = expected_steps(seen)
        if not PLANNED[0] <= total <= PLANNED[1] or not (stopped or done >= 0.8 * total or used(facts) >= USED):
            continue
        found = features(seen, step, validated=validated)
        if found is not None:
            author = facts["author"] or "folder " + facts["folder_id"]
            rows.append(Row(facts["folder_id"], author, number(facts["pr"]), found, scores(facts)))
    return rows


def step_of(run: Run, knot: str) -> float:
    """Where the knot lies; a share is one of the steps that are expected there."""
    kind, place = knot.split()
    if kind == "step":
        return float(place)
    step = 1000.0
    for _ in range(4):
        step = float(place) * expected_steps(run.until(int(step)))
        if not step > 0:
            return math.nan
    return step


def used(facts: dict[str, str]) -> float:
    """Share of its time that a run took; the contest's time where it states none."""
    cap = number(facts["max_wallclock_s"])
    return number(facts["wallclock_s"]) / (USUAL_CAP if math.isnan(cap) else cap or math.inf)
