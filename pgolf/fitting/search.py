"""One knob against one curve: the finest step size whose result still fits the target.

Sizes come from real packs, which cost seconds to minutes, so every trial must count. How fast bytes fall is believed until
two trials tell it, and those until two enclose the target. Trials are noisy at the last per mille (codes change, tables
change), so the best one that fits is kept, not the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

COARSEST = 2.0**14  # the far end: nearly everything rounds to zero
TRIALS = 16
SPARE = 0.3  # of the tolerance
FARTHEST = 4.0  # octaves between trials, at most, until the target is enclosed
NEAR = 0.02  # octaves
SLOPES = 0.125, 2.0  # of the slope believed at first: what two trials may say of it...
APART = 4  # ...that are so many times further apart than what noise covers
NARROWEST = 3e-5  # octaves
WIDEST = 12.0  # octaves either way that foreseen sizes are looked for in
FORESIGHTS = 12
NEARBY = 1.05  # steps either way whose foreseen sizes tell the slope...
LEAST_SLOPE = 0.1  # ...which is at least this share of what wide codes have


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
    spare: float = SPARE,
) -> Outcome[T]:
    """Search steps from `finest` to `coarsest` for a size in [target - tolerance, target].

    run: size falls as the step grows; it may raise OutOfTime, which ends the search with the best so far and is passed
    on if nothing fitted yet. per_octave: expected fall of the size when the step doubles. narrowest: octaves between two steps
    that enclose the target, beneath which no more is sought: where sizes scatter, that is noise. spare: share of the tolerance
    that is aimed below the target.
    """
    fine: Bound | None = None  # too large
    coarse: Bound | None = None  # fits
    latest: Bound | None = None
    best: Attempt[T] | None = None
    step: float | None = min(max(start, finest), coarsest)
    slope, trials = per_octave, 0
    while step is not None and trials < TRIALS:
        try:
            trial = run(step)
        except OutOfTime:
            if best is None:
                raise
            break
        trials += 1
        bound = Bound(step, trial.size)
        if latest is not None and abs(math.log2(step / latest.step)) > APART * narrowest:
            slope = _slope(latest, bound, per_octave)
        latest = bound
        if trial.size <= target:
            coarse = bound
            best = trial if best is None or trial.size >= best.size else best
        else:
            fine = bound
        if best is not None and target - best.size <= tolerance:
            break
        step = _next(fine, coarse, target - spare * tolerance, (finest, coarsest), slope, trials, narrowest)
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


def slope_at(size: Callable[[float], float], step: float, per_octave: float) -> float:
    """By how much a foreseen size falls in an octave at a step; per_octave: the same while codes are wide."""
    found = (size(step / NEARBY) - size(step * NEARBY)) / (2 * math.log2(NEARBY))
    return max(found, LEAST_SLOPE * per_octave)


def _next(
    fine: Bound | None,
    coarse: Bound | None,
    aim: float,
    ends: tuple[float, float],
    slope: float,
    trials: int,
    narrowest: float,
) -> float | None:
    """The next step to try, between the finest and the coarsest of `ends`; None when nothing is left to gain."""
    finest, coarsest = ends
    if fine is not None and coarse is not None:
        near = math.log2(coarse.step / fine.step) < narrowest
        return None if near else _between(fine, coarse, aim, slope, bisect=trials % 4 == 0)
    known = fine or coarse
    assert known is not None
    octaves = (known.size - aim) / slope
    close = abs(octaves) < NEAR
    if close and trials == 1:  # step a little beyond the aim, so that the next two trials enclose it
        octaves *= 1.3
    if trials > 1 + close:  # the slope was too steep: it flattens where codes run out
        octaves = math.copysign(max(abs(octaves), NEAR * 4**trials), octaves)
    step = known.step * 2 ** min(max(octaves, -FARTHEST), FARTHEST)
    if fine is None:
        return max(step, finest) if known.step > finest else None
    return min(step, coarsest) if known.step < coarsest else None


def _slope(before: Bound, latest: Bound, believed: float) -> float:
    """By how much the size falls in an octave, from two trials."""
    low, high = SLOPES
    found = (before.size - latest.size) / math.log2(latest.step / before.step)
    return min(max(found, low * believed), high * believed)


def _between(fine: Bound, coarse: Bound, aim: float, slope: float, *, bisect: bool) -> float | None:
    """From the nearer end by the slope, or by the chord where that leads out, or now and then by bisection."""
    width = math.log2(coarse.step / fine.step)
    if fine.size <= coarse.size:
        return None
    share = (fine.size - aim) / slope / width
    if fine.size - aim > aim - coarse.size:
        share = 1 - (aim - coarse.size) / slope / width
    if not 0 < share < 1:
        share = (fine.size - aim) / (fine.size - coarse.size)
    return fine.step * 2 ** (width * (0.5 if bisect else min(max(share, 0.03), 0.97)))
