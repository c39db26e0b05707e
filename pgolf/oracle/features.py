"""What of a run, up to a knot, the foreseen score is read from: one number a feature, NaN where the log does not say.

A knot is a place on the way: a step early on, later a share of the steps that the run is expected to do.
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import numpy as np

from pgolf.oracle.run import Points, Run

STEPS = (250, 500, 1000, 2000)
SHARES = (0.4, 0.6, 0.8, 0.95)
NAMES = (
    "level",
    "total",
    "parameters",
    "vocabulary",
    "nats",
    "batch",
    "length",
    "pace",
    "gap",
    "validated",
    "early",
    "latest",
    "off",
    "after_10",
    "after_200",
)
BENT = (
    "level",
    "total",
    "parameters",
    "nats",
    "batch",
    "pace",
    "early",
    "after_10",
    "after_200",
)  # with their products
PRODUCTS = (
    *combinations_with_replacement(BENT, 2),
    *(("validated", name) for name in ("level", "total", "after_10", "after_200")),
)
USUAL_CAP = 600.0  # seconds: the contest's, which some of its trainers do not print
SLOPE = 0.1  # of log BPB over log steps, early in a run: only moves points of other steps to the knot


def expected_steps(run: Run, points: Points | None = None) -> float:
    """Steps that the run will have done: what it plans, or as many as its time allows at its pace so far; NaN if unknown."""
    points = run.array if points is None else points
    planned, cap = run.settings.get("iterations", math.nan), run.settings.get("max_wallclock_s", math.nan)
    if math.isnan(cap) and run.settings.get("world_size", 8) >= 8 and 9000 <= planned <= 20000:
        cap = USUAL_CAP
    pace = _pace(points)
    by_time = cap * 1000 / pace if cap > 0 and pace > 0 else math.inf
    known = min(by_time, planned if planned > 0 else math.inf)
    return known if known < math.inf else math.nan


def _pace(points: Points) -> float:
    """Milliseconds a step, from the beginning to the last time that is known."""
    timed = points[(points[:, 1] > 0) & (points[:, 0] > 0)]
    return float(timed[-1, 1] / timed[-1, 0]) if len(timed) else math.nan


def knots(run: Run) -> list[tuple[str, float]]:
    """(name, step) of the knots that a run has reached, the furthest last."""
    total, step = expected_steps(run), run.step * 1.001
    early = [(f"step {knot}", float(knot)) for knot in STEPS if knot <= step]
    late = [(f"share {share:g}", share * total) for share in SHARES if 2000 < share * total <= step]
    return early + late


def features(run: Run, knot: float, *, validated: bool = True) -> dict[str, float] | None:
    """Of what was known at the step `knot`, by NAMES; None where there is no loss near it. validated: use validation too."""
    points = run.array
    points = points[points[:, 0] <= 1.001 * knot]
    level, place = _validation(points, knot) if validated else (math.nan, math.nan)
    trained = _training(points, knot, 0.5, 1.001, run.nats)
    if math.isnan(level) and math.isnan(trained):
        return None
    by_validation = not math.isnan(level)
    said = run.settings
    raw = {
        "total": expected_steps(run, points), "parameters": said.get("n_params", math.nan),
        "vocabulary": said.get("vocab", math.nan), "nats": run.nats, "batch": said.get("train_batch_tokens", math.nan),
        "length": said.get("train_seq_len", math.nan), "pace": _pace(points),
    }  # fmt: skip
    found = {name: math.log(value) if value > 0 else math.nan for name, value in raw.items()}
    found["level"] = level if by_validation else trained
    found["gap"] = level - trained if by_validation and not math.isnan(trained) else math.nan
    found["validated"] = float(by_validation)
    found["early"] = _training(points, knot, 0.15, 0.5, run.nats) - found["level"]
    found["latest"] = _training(points, knot, 0.9, 1.001, run.nats) - found["level"]
    found["after_10"] = _training(points, 10, 0.5, 1.5, run.nats) - found["level"]
    found["after_200"] = _training(points, 200, 0.75, 1.25, run.nats) - found["level"]
    found["off"] = math.log(place / knot) if by_validation else 0.0
    return found


def _validation(points: Points, knot: float) -> tuple[float, float]:
    """log BPB of the last validation near the knot, moved to it, and its step."""
    near = points[(points[:, 3] > 0) & (points[:, 0] >= 0.7 * knot)]
    if not len(near):
        return math.nan, math.nan
    step, bpb = near[-1, 0], near[-1, 3]
    return math.log(bpb) + SLOPE * math.log(step / knot), step


def _training(points: Points, knot: float, low: float, high: float, nats: float) -> float:
    """Mean log BPB of the training losses between two shares of the knot, each moved to the knot."""
    near = points[(points[:, 2] > 0) & (points[:, 0] > low * knot) & (points[:, 0] <= high * knot)]
    if not len(near) or not nats > 0:
        return math.nan
    return float(np.mean(np.log(near[:, 2] * nats) + SLOPE * np.log(near[:, 0] / knot)))
