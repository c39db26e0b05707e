"""Where the knob goes: the finest step that fills a byte budget, or the coarsest that a rise of the loss allows.

One number, `step`, multiplies the step size of every tensor whose step nobody fixed. Sizes come from the coder itself;
expected sizes only choose where to start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pgolf.code.weigh import counted
from pgolf.common.sizes import Size, parse_size, show_size
from pgolf.errors import BudgetError, UsageError
from pgolf.fitting import search
from pgolf.fitting.plan import listed
from pgolf.fitting.search import Attempt
from pgolf.fitting.trial import Job, Trial

CLOSE = 0.001  # a search ends when the artifact is this close below the budget...
CLOSE_ENOUGH = 0.04  # the same in a hurry: the first trial should do
CLOSE_BYTES = 200  # ...or this close
EXPECTED_CLOSE = 1e-4  # expected sizes are solved to this share of the budget...
EXPECTED_BYTES = 10  # ...and this
RISE_OCTAVES = 0.02  # a target rise is met to 1.4%


@dataclass(frozen=True)
class Goal:
    """What a pack is to meet: `budget` bytes for artifact and code, or a rise of the loss in nats per token, or neither.

    code_bytes: script -> what it counts.
    """

    budget: int | None = None
    rise: float | None = None
    code_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def moves(self) -> bool:
        """Whether the knob has to move for it; without a goal the settings are taken as they are."""
        return self.budget is not None or self.rise is not None

    def room(self) -> int | None:
        """Bytes that the budget leaves for the artifact, None without one. Raises BudgetError where that is nothing."""
        if self.budget is None:
            return None
        code = sum(self.code_bytes.values())
        if code >= self.budget:
            raise BudgetError(f"the code alone counts {show_size(code)}, the budget is {show_size(self.budget)}")
        return self.budget - code


def goal_of(
    budget: Size | None = None, target_rise: float | None = None, code: str | Path | Sequence[str | Path] = ()
) -> Goal:
    """The goal that a user names. Raises UsageError for two of them, and for what is no size."""
    if budget is not None and target_rise is not None:
        raise UsageError("give a budget or a target rise, not both")
    if target_rise is not None and not math.isfinite(target_rise):
        raise UsageError(f"a target rise of {target_rise} cannot be reached: give a number")
    limit = None if budget is None else parse_size(budget)
    return Goal(limit, target_rise, counted(listed(code)))


def meet(job: Job, goal: Goal, *, hurried: bool = False) -> Trial:
    """The best trial that meets the goal. hurried: the first one that fits well enough will do.

    Raises what `fill` and `reach` raise.
    """
    if (room := goal.room()) is not None:
        return fill(job, room, CLOSE_ENOUGH if hurried else CLOSE)
    return job.run(1.0) if goal.rise is None else reach(job, goal.rise)


def fill(job: Job, room: int, close: float = CLOSE) -> Trial:
    """The finest step whose artifact is at most `room` bytes, and at most `close` of it below.

    Raises BudgetError with the smallest reachable size and what dominates it, and OutOfTime where nothing fitted when
    the job's time was up.
    """
    if not job.searched:
        return _as_it_is(job, room)

    def run(step: float) -> Attempt[Trial]:
        trial = job.run(step)
        job.progress("fill the budget", min(trial.size, room), room)
        return Attempt(step, trial.size, trial)

    tolerance = max(close * room, CLOSE_BYTES)
    outcome = search.largest_that_fits(
        run,
        room,
        start=_promising(job, room - tolerance),
        finest=_finest(job),
        per_octave=_bytes_per_octave(job),
        tolerance=tolerance,
    )
    if outcome.best is not None:
        return outcome.best.result
    if outcome.last.step >= search.COARSEST:
        raise _does_not_fit(outcome.last.result, room, "even the coarsest steps are too many bytes")
    raise _does_not_fit(outcome.last.result, room, f"{outcome.trials} trials found none that fits")


def _as_it_is(job: Job, room: int) -> Trial:
    """The only trial of a job whose steps are all fixed. Raises BudgetError where it does not fit."""
    trial = job.run(1.0)
    if trial.size > room:
        why = "every step size is fixed by --set" if job.quantized else "no tensor is quantized"
        raise _does_not_fit(trial, room, why)
    return trial


def _promising(job: Job, aim: float) -> float:
    """A step that should give about `aim` bytes, from expected sizes where the method can tell, else 1.

    From 3 bits a weight on, files came out 0.05 to 0.09% larger than expected (golf3m and 36M synthetic weights).
    """
    if not job.foresees():
        return 1.0
    left, tolerance = aim - job.kept_bytes(), EXPECTED_CLOSE * aim + EXPECTED_BYTES
    return float(2.0 ** search.crossing(lambda x: job.expected_bytes(2**x), left, _bytes_per_octave(job), tolerance))


def _bytes_per_octave(job: Job) -> float:
    """By how much an artifact shrinks when the knob doubles, while codes are wide: a bit for each searched weight."""
    return job.weights(job.searched) / 8


def _finest(job: Job) -> float:
    return max(job.plans[name].finest for name in job.searched)


def reach(job: Job, target_rise: float) -> Trial:
    """The coarsest step whose predicted rise of the loss is at most `target_rise`; the rise goes with its square.

    Raises UsageError without curvature: nothing can be predicted then.
    """
    if not job.curvatures or not job.searched:
        raise UsageError("a target rise needs curvature (--model or --curvature) and a step that is not fixed")

    def run(inverse_step: float) -> Attempt[Trial]:
        trial = job.run(1 / inverse_step)
        return Attempt(inverse_step, math.log2(max(job.rise(trial), 1e-300)), trial)

    outcome = search.largest_that_fits(
        run, math.log2(target_rise), start=1.0, finest=1 / search.COARSEST, per_octave=2.0, tolerance=RISE_OCTAVES
    )
    if outcome.best is None or outcome.best.result.step < _finest(job):
        raise BudgetError(f"a predicted rise of {target_rise:.3g} nats per token is out of this method's reach")
    return outcome.best.result


def _does_not_fit(trial: Trial, room: int, why: str) -> BudgetError:
    largest = sorted(trial.shares().tensors.items(), key=lambda item: -item[1])[:3]
    names = ", ".join(f"{name} {show_size(num_bytes)}" for name, num_bytes in largest)
    return BudgetError(
        f"does not fit: {show_size(room)} are left for the model and the smallest reachable is {show_size(trial.size)} "
        f"({why}); most of it: {names}"
    )
