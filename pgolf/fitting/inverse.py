"""The inverse question: the smallest artifact whose model stays near enough, as foreseen or as measured.

The rise of the loss, foreseen or measured, and the KL go with the square of the step while steps are fine, so each trial says
about where the next belongs. Measured figures scatter by some per cent from step to step; what is returned was measured itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from pgolf.errors import BudgetError, UsageError
from pgolf.fitting import search
from pgolf.fitting.goal import Goal
from pgolf.fitting.search import Attempt
from pgolf.fitting.trial import Job, Trial
from pgolf.quant.methods import auto
from pgolf.scoring.divergence import Divergence

FORESEEN_OCTAVES = 0.02  # a foreseen rise is met to 1.4%...
MEASURED_OCTAVES = (
    0.03  # ...and a measured one to 2.1%: half a per cent of the bytes at 3 bits a weight, or where steps
)
NARROW = 0.02  # octaves apart enclose it: nearer, the scatter of a small model's KL is all that is left
PER_OCTAVE = 2.0  # of the step: a fourth of the KL where the step is halved
LEAST = 2.0**-20  # of the limit: what noise makes of a rise of nothing, or of less
MOST = 2.0**20  # of the limit: NaN and infinity

Measure = Callable[[Trial], Divergence]


def reach(job: Job, target_rise: float) -> Trial:
    """The coarsest step whose predicted rise of the loss is at most `target_rise`.

    Raises UsageError without curvature: nothing can be predicted then. BudgetError where it cannot be met.
    """
    if not job.curvatures or not job.searched:
        raise UsageError("a target rise needs curvature (--model or --curvature) and a step that is not fixed")
    found = _coarsest(job, target_rise, job.rise, 1.0, FORESEEN_OCTAVES)
    if found is None:
        raise BudgetError(f"a predicted rise of {target_rise:.3g} nats per token is out of this method's reach")
    return found


def smallest(job: Job, goal: Goal, measure: Measure) -> tuple[Trial, Divergence, int]:
    """The smallest artifact tried whose KL, or rise, is at most the goal's as `measure` finds it: that, its divergence, and how
    many were tried.

    Raises BudgetError where none is, UsageError where there is no step to search.
    """
    limit, of = (goal.max_kl, _kl) if goal.max_kl is not None else (goal.max_rise, _rise)
    assert limit is not None
    what = "a KL" if of is _kl else "a rise of the loss"
    if not job.searched:
        raise UsageError(
            f"{what} of at most {limit:g} needs a step to search: here every one is fixed, or nothing quantized"
        )
    tried: list[float] = []
    best: tuple[Trial, Divergence] | None = None

    def value(trial: Trial) -> float:
        nonlocal best
        found = measure(trial)
        tried.append(of(found))
        if of(found) <= limit and (best is None or trial.size < best[0].size):
            best = (trial, found)
        return of(found)

    _coarsest(job, limit, value, _start(job, limit), MEASURED_OCTAVES, NARROW)
    if best is None:
        raise BudgetError(
            f"{what} of at most {limit:g} nats per token is out of reach: the least of {len(tried)} tried was "
            f"{min(tried):.3g}"
        )
    return *best, len(tried)


def _kl(found: Divergence) -> float:
    return found.kl


def _rise(found: Divergence) -> float:
    return found.rise


def _start(job: Job, limit: float) -> float:
    """About where the limit is met: with curvature every weight that `auto` rounds costs alike, whatever its tensor."""
    weights = job.weights(name for name in job.searched if job.plans[name].at(1.0).method == "auto")
    if not weights or not job.curvatures:
        return 1.0
    return math.sqrt(limit / auto.foreseen_rise(weights))


def _coarsest(
    job: Job,
    limit: float,
    value: Callable[[Trial], float],
    start: float,
    tolerance: float,
    narrow: float = search.NARROWEST,
) -> Trial | None:
    """The coarsest step at which `value` is at most `limit`, and at most `tolerance` octaves below it; None if none is."""

    def run(inverse_step: float) -> Attempt[Trial]:
        trial = job.run(1 / inverse_step)
        found = value(trial)
        share = found / limit if math.isfinite(found) else MOST
        return Attempt(inverse_step, math.log2(min(max(share, LEAST), MOST)), trial)

    outcome = search.largest_that_fits(
        run,
        0.0,
        start=1 / start,
        finest=1 / search.COARSEST,
        coarsest=1 / job.finest,
        per_octave=PER_OCTAVE,
        tolerance=tolerance,
        narrowest=narrow,
    )
    return outcome.best.result if outcome.best else None
