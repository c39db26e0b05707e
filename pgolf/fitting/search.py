"""One knob against one curve: the finest step size whose result still fits the target.

Sizes come from real packs, which cost seconds to minutes, so every trial must count. Bytes fall by about 1/8 for each
searched weight when the knob doubles; that slope is believed until two trials enclose the target. Trials are noisy at
the last per mille (codes change, tables change), so the best one that fits is kept, not the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

COARSEST = 2.0**14  # the far end: nearly everything rounds to zero
TRIALS = 16
SPARE = 0.3  # aim this share of the tolerance below the target
FARTHEST = 4.0  # octaves between trials, at most, until the target is enclosed
NEAR = 0.02  # octaves
NARROWEST = 3e-5  # octaves
WIDEST = 12.0  # octaves either way that foreseen sizes are looked for in
FORESIGHTS = 12


class Bound(NamedTuple):
    """One end of what encloses the target. Of its trial no more is kept: results are as large as the model."""

    step: float
    size: float


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """What a position of the knob gave: size to be kept at or under the target."""

    step: float
    size: float
    result: T


class OutOfTime(Exception):
    """No time is left for the trial that was asked for."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """best: the largest size that fits, None if nothing did. last: the final trial. trials: how many were run."""

    best: Attempt[T] | None
    last: Attempt[T]
    trials: int


def largest_that_fits(
    run: Callable[[float], Attempt[T]],
    target: float,
    *,
    start: float,
    finest: float,
    per_octave: float,
    tolerance: float,
    coarsest: float = COARSEST,
    narrowest: float = NARROWEST,
) -> Outcome[T]:
    """Search steps from `finest` to `coarsest` for a size in [target - tolerance, target].

    run: size falls as the step grows; it may raise OutOfTime, which ends the search with the best so far and is passed
    on if nothing fitted yet. per_octave: expected fall of the size when the step doubles. narrowest: octaves between two steps
    that enclose the target, beneath which no more is sought: where sizes scatter, that is noise.
    """
    fine: Bound | None = None  # too large
    coarse: Bound | None = None  # fits
    best: Attempt[T] | None = None
    step: float | None = min(max(start, finest), coarsest)
    trials = 0
    while step is not None and trials < TRIALS:
        try:
            trial = run(step)
        except OutOfTime:
            if best is None:
                raise
            break
        trials += 1
        if trial.size <= target:
            coarse = Bound(step, trial.size)
            best = trial if best is None or trial.size >= best.size else best
        else:
            fine = Bound(step, trial.size)
        if best is not None and target - best.size <= tolerance:
            break
        step = _next(fine, coarse, target - SPARE * tolerance, (finest, coarsest), per_octave, trials, narrowest)
    return Outcome(best, trial, trials)


def crossing(size: Callable[[float], float], target: float, per_octave: float, tolerance: float) -> float:
    """log2 of about the finest step, between ±WIDEST, whose foreseen size is at most `target`; for cheap sizes.

    Newton's method with the slope of the last two points, which starts as `per_octave`; the bracket keeps it safe.
    """
    low, high, x = -WIDEST, WIDEST, 0.0
    slope, previous = -per_octave, None
    for _ in range(FORESIGHTS):
        y = size(x)
        low, high = (x, high) if y > target else (low, x)
        if abs(y - target) <= tolerance:
            return x
        if previous is not None and previous[0] != x and previous[1] != y:
            slope = (y - previous[1]) / (x - previous[0])
        previous = (x, y)
        x += (target - y) / min(slope, -1e-6 * per_octave)
        if not low < x < high:
            x = (low + high) / 2
    return high


def _next(
    fine: Bound | None,
    coarse: Bound | None,
    aim: float,
    ends: tuple[float, float],
    per_octave: float,
    trials: int,
    narrowest: float,
) -> float | None:
    """The next step to try, between the finest and the coarsest of `ends`; None when nothing is left to gain."""
    finest, coarsest = ends
    if fine is not None and coarse is not None:
        near = math.log2(coarse.step / fine.step) < narrowest
        return None if near else _between(fine, coarse, aim, bisect=trials % 4 == 3)
    known = fine or coarse
    assert known is not None
    octaves = (known.size - aim) / per_octave
    if abs(octaves) < NEAR:  # step a little beyond the aim, so that the next two trials enclose it
        octaves *= 1.3
    if trials > 1:  # the slope was too steep: it flattens where codes run out
        octaves = math.copysign(max(abs(octaves), NEAR * 4**trials), octaves)
    step = known.step * 2 ** min(max(octaves, -FARTHEST), FARTHEST)
    if fine is None:
        return max(step, finest) if known.step > finest else None
    return min(step, coarsest) if known.step < coarsest else None


def _between(fine: Bound, coarse: Bound, aim: float, *, bisect: bool) -> float | None:
    """By the chord of size over log step; now and then by bisection, because a chord creeps along a bent curve."""
    width = math.log(coarse.step / fine.step)
    if fine.size <= coarse.size:
        return None
    share = 0.5 if bisect else (fine.size - aim) / (fine.size - coarse.size)
    return fine.step * math.exp(width * min(max(share, 0.03), 0.97))
