"""How sure a mean over tokens is, and the difference of two such means, where tokens of one unit hang together.

A unit is a document, or a window where there are few documents. The difference is bootstrapped: units are drawn with replacement,
both models on the same draw (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 4000
AT_ONCE = 1 << 22  # units drawn at a time
CONFIDENCE = 0.95

Sums = NDArray[np.float64]


@dataclass(frozen=True)
class Bootstrapped:
    """value: nats per token; standard_error, and low and high, the 95% percentile interval, over `draws` draws of `units`; p:
    two-sided, of no difference, at least 2 / (draws + 1). All but the value are None for a single unit."""

    value: float
    units: int
    draws: int
    standard_error: float | None
    low: float | None
    high: float | None
    p: float | None

    def to_json(self) -> dict[str, float | None]:
        return asdict(self)


def standard_error(sums: Sums, counts: NDArray[np.integer]) -> float | None:
    """Of Σ sums / Σ counts, over units [D], by the ratio estimator's linearization (see paired.py); None for one unit."""
    if len(sums) < 2:
        return None
    moved = (sums - sums.sum() / counts.sum() * counts) / counts.sum()
    return math.sqrt(len(sums) / (len(sums) - 1) * float(moved @ moved))


def difference(first: Sums, second: Sums, counts: NDArray[np.integer], *, seed: int = 0) -> Bootstrapped:
    """Mean of `second` less that of `first`, of sums over the same units [D] of `counts` tokens each."""
    change = second - first
    value, units = float(change.sum() / counts.sum()), len(change)
    if units < 2:
        return Bootstrapped(value, units, 0, None, None, None, None)
    drawn = _draws(change, counts, np.random.default_rng(seed))
    low, high = (float(q) for q in np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (DRAWS + 1))
    return Bootstrapped(value, units, DRAWS, float(drawn.std(ddof=1)), low, high, p)


def _draws(sums: Sums, counts: NDArray[np.integer], random: np.random.Generator) -> Sums:
    """Σ sums / Σ counts of DRAWS draws of as many units as there are."""
    units, each = len(sums), max(1, AT_ONCE // len(sums))
    parts = []
    for first in range(0, DRAWS, each):
        chosen = random.integers(0, units, (min(each, DRAWS - first), units))
        parts.append(sums[chosen].sum(1) / counts[chosen].sum(1))
    return np.concatenate(parts)
