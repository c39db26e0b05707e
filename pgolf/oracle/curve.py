"""A run's own curve continued: a power law that falls to a floor, and what such a continuation is known to miss.

It cannot see the learning rate go down, so its error is one-sided; `errors` says how large it was, by the share of the run that
was over, on the runs of the fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.oracle.run import Run

Vector = NDArray[np.float64]
POWERS = np.linspace(0.05, 1.5, 30)
LEAST = 4  # points


def points_of(run: Run) -> tuple[Vector, Vector]:
    """(steps, BPB) of the curve without its first tenth: validation where it has enough points, or the training loss; in nats
    where the BPB of a nat is not known."""
    table = run.array
    table = table[table[:, 0] > max(1, 0.1 * run.step)]
    valid = table[:, 3] > 0
    if valid.sum() >= LEAST:
        return table[valid, 0], table[valid, 3]
    trained = table[:, 2] > 0
    return table[trained, 0], table[trained, 2] * (run.nats if run.nats > 0 else 1.0)


def power_law(steps: Vector, values: Vector) -> tuple[float, float, float] | None:
    """(floor, height, power) of values ≈ floor + height · steps^-power, never rising, floor ≥ 0; None with too few points.

    Least squares, twice: points whose error is above three typical ones do not count the second time.
    """
    if len(steps) < LEAST or steps[-1] < 1.5 * steps[0]:
        return None
    kept = np.ones(len(steps), bool)
    best: tuple[float, float, float] | None = None
    for _ in range(2):
        best = min((_at_power(steps[kept], values[kept], power) for power in POWERS), key=lambda fit: fit[0])[1]
        error = np.abs(best[0] + best[1] * steps ** -best[2] - values)
        kept = error <= 3 * 1.4826 * np.median(error) + 1e-9
        if kept.sum() < LEAST:
            break
    return best


def _at_power(steps: Vector, values: Vector, power: float) -> tuple[float, tuple[float, float, float]]:
    x = steps**-power
    spread = x - x.mean()
    height = max(0.0, float(spread @ (values - values.mean()) / max(float(spread @ spread), 1e-300)))
    floor = float(values.mean() - height * x.mean())
    if floor < 0:
        floor, height = 0.0, float(x @ values / (x @ x))
    return float(np.square(floor + height * x - values).sum()), (floor, height, float(power))


def extrapolate(run: Run, total: float, errors: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """target -> (value, low, high) at the end of the run, the known error of such a continuation added; {} where there is no
    curve or no end."""
    steps, values = points_of(run)
    law = power_law(steps, values)
    if law is None or not math.isfinite(total) or total <= 0:
        return {}
    end = law[0] + law[1] * max(total, steps[-1]) ** -law[2]
    share = min(1.0, run.step / total)
    found = {}
    for target, table in errors["errors"].items():
        low, middle, high = (float(np.interp(share, errors["shares"], column)) for column in columns(table))
        found[target] = (end * math.exp(middle), end * math.exp(low), end * math.exp(high))
    return found


def columns(table: Sequence[Sequence[float]]) -> list[list[float]]:
    """Rows of (low, middle, high) as three columns."""
    return [list(column) for column in zip(*table, strict=True)]
