"""The foreseen score of a run: linear in its features, robustly fitted at each knot, with conformal bands; coefficients.json.

Where a run lies outside of what was seen, or the fit has no knot, its own curve is extrapolated (curve.py) and says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.oracle import curve
from pgolf.oracle.features import NAMES, PRODUCTS, expected_steps, features, knots
from pgolf.oracle.run import Run

Vector = NDArray[np.float64]
TARGETS = ("unpacked", "final")
ANCHOR = 0.5  # share of the level that the score follows before any fit, so that an odd level is not held at MOST of it
MOST = 4.0  # deviations at which a feature is held: beyond, a line says nothing


@dataclass(frozen=True)
class Band:
    """A foreseen BPB with the bounds of its 80% interval. known: it is measured, not foreseen."""

    value: float
    low: float
    high: float
    known: bool = False


@dataclass(frozen=True)
class Foresight:
    """What is foreseen of a run. how: "fitted", "curve" or "nothing". outside: reasons why the fit does not speak for it."""

    run: Run
    how: str
    knot: str
    total: float
    bands: Mapping[str, Band]
    outside: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not known is null."""
        run = self.run
        return {
            "log": run.name, "step": run.step, "seconds": _plain(run.milliseconds / 1000), "total_steps": _plain(self.total),
            "how": self.how, "knot": self.knot, "outside": self.outside, "notes": run.notes, "broken": run.broken,
            "over": run.total is not None, "size": run.size, "scores": run.scores,
            **{name: asdict(self.bands[name]) if name in self.bands else None for name in TARGETS},
        }  # fmt: skip


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


@lru_cache(1)
def coefficients() -> dict[str, Any]:
    """What benchmarks/oracle.py fitted."""
    read: dict[str, Any] = json.loads((files("pgolf.oracle") / "coefficients.json").read_text("utf-8"))
    return read


def row_of(found: Mapping[str, float], middle: Vector, spread: Vector) -> Vector:
    """The regressors of one run: 1, standardised features (0 where unknown), products, which are unknown."""
    values = np.array([found[name] for name in NAMES])
    missing = np.isnan(values)
    z = np.clip((np.where(missing, middle, values) - middle) / spread, -MOST, MOST)
    products = [z[NAMES.index(a)] * z[NAMES.index(b)] for a, b in PRODUCTS]
    return np.concatenate([[1.0], z, products, missing.astype(float)])


def foresee(run: Run, *, cover: float = 0.8) -> Foresight:
    """What the log up to here says of the end. cover: share of runs that the interval is to hold: 0.8 alone."""
    assert cover == 0.8
    bands = {n: Band(v, v, v, True) for n, v in (("unpacked", run.unpacked), ("final", run.final)) if math.isfinite(v)}
    total = float(run.total) if run.total is not None else expected_steps(run)
    if run.broken is not None and run.final != run.final:
        return Foresight(run, "nothing", "", total, bands, [f"the loss is no number from step {run.broken} on"])
    if len(bands) == len(TARGETS):
        return Foresight(run, "measured", "", total, bands)
    reached = [(name, step, found) for name, step in knots(run) if (found := features(run, step)) is not None]
    reasons = ["it has not reached step 250"]
    if reached:
        name, _, found = reached[-1]
        fit = coefficients()["knots"][f"{name}, {kind_of(found)}"]
        reasons = outside(found, fit)
        if not reasons:
            fitted = {target: _band(found, fit, target) for target in TARGETS}
            return Foresight(run, "fitted", name, total, fitted | bands)
    continued = curve.extrapolate(run, total, coefficients()["curve"])
    drawn = {name: Band(*values) for name, values in continued.items()}
    return Foresight(run, "curve" if drawn else "nothing", "", total, drawn | bands, reasons)


def kind_of(found: Mapping[str, float]) -> str:
    """Which of a knot's two fits speaks: the one of runs with validation near it, or the one that never saw any."""
    return "validated" if found["validated"] else "trained"


def outside(found: Mapping[str, float], knot: Mapping[str, Any]) -> list[str]:
    """Which features lie where the fit has seen (almost) no run, in words."""
    reasons = []
    for name, (low, high) in knot["range"].items():
        value = found[name]
        if math.isnan(value):
            if name in {"total", "level"}:
                reasons.append("the log does not say how long the run is to be")
        elif not low <= value <= high:
            reasons.append(f"{WORDS[name]} {_show(name, value)}: seen were {_show(name, low)} to {_show(name, high)}")
    return reasons


WORDS = {
    "level": "the BPB here of", "total": "an expected number of steps of", "parameters": "a number of parameters of",
    "vocabulary": "a vocabulary of", "nats": "the BPB of a nat (tokenizer and text) of", "batch": "tokens a batch of",
    "length": "a sequence length of", "pace": "milliseconds a step of",
}  # fmt: skip


def _show(name: str, value: float) -> str:
    number = math.exp(value)
    return f"{number:.4f}" if name in {"level", "nats"} else f"{number:,.0f}"


def _band(found: Mapping[str, float], knot: Mapping[str, Any], target: str) -> Band:
    fit = knot[target]
    row = row_of(found, np.array(knot["middle"]), np.array(knot["spread"]))
    value = ANCHOR * found["level"] + float(row @ np.array(fit["weights"]))
    low, high = fit["band"]
    scale = doubt(row, fit["doubt"])
    return Band(math.exp(value), math.exp(value + scale * low), math.exp(value + scale * high))


def doubt(row: Vector, weights: list[float]) -> float:
    """How much wider than usual a band is, by where the features lie and how far from the middle; 1/3 to 3."""
    return float(np.exp(np.clip(doubts_of(row) @ np.array(weights), -1.1, 1.1)))


def doubts_of(row: Vector) -> Vector:
    """What the width of a band is told from: 1, the size and the sign of each feature. row: as of `row_of`."""
    z = row[1 : 1 + len(NAMES)]
    return np.concatenate([[1.0], np.abs(z), z])


def ahead(one: Foresight, other: Foresight, target: str) -> float | None:
    """Probability that `one` ends lower than `other`, from how often a foreseen lead came true between runs of the fit."""
    if target not in one.bands or target not in other.bands:
        return None
    a, b = one.bands[target], other.bands[target]
    lead = math.log(b.value / a.value)
    if a.known and b.known:
        return 0.5 if lead == 0 else float(lead > 0)
    scale = math.hypot(*((math.log(x.high / x.low) / 2 or 1e-4) for x in (a, b) if not x.known))
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, coefficients()["lead"][target] * lead / scale))))
