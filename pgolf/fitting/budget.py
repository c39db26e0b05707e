"""Where the knob goes: the finest step that fills a byte budget, or so many bits a weight.

One number, `step`, multiplies the step size of every tensor whose step nobody fixed. Sizes come from the coder itself;
expected sizes, and what a sample of a large model takes, only choose where to start. The other way round, the coarsest step
that keeps a model near: inverse.py.
"""

from __future__ import annotations

from collections.abc import Callable

from pgolf.common.sizes import show_size
from pgolf.errors import BudgetError, UsageError
from pgolf.fitting import guided, inverse, search
from pgolf.fitting.goal import Goal
from pgolf.fitting.search import Attempt
from pgolf.fitting.trial import Job, Trial

CLOSE = 0.001  # a search ends when the artifact is this close below the budget...
CLOSE_ENOUGH = 0.04  # the same in a hurry: the first trial should do
CLOSE_BYTES = 200  # ...or this close
EXPECTED_CLOSE = 1e-4  # expected sizes are solved to this share of the budget...
EXPECTED_BYTES = 10  # ...and this
SPARE = 0.5  # of the tolerance, where it is large: sizes scatter by about as much either way


def meet(job: Job, goal: Goal, *, hurried: bool = False) -> Trial:
    """The best trial that meets a goal which is known without running the model. hurried: the first one that fits well
    enough will do.

    Raises what `fill`, `bits_filled` and `inverse.reach` raise.
    """
    close = CLOSE_ENOUGH if hurried else CLOSE
    if (room := goal.room()) is not None:
        return fill(job, room, close)
    if goal.bits is not None:
        return bits_filled(job, goal.bits, close)
    return job.run(1.0) if goal.rise is None else inverse.reach(job, goal.rise)


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
    if guided.is_worth(job):
        outcome = guided.largest_that_fits(job, run, room, tolerance, lambda told: told.num_bytes)
    else:
        start = _promising(job, room - tolerance)
        outcome = search.largest_that_fits(
            run,
            room,
            start=start,
            finest=job.finest,
            per_octave=_slope(job, start),
            tolerance=tolerance,
            spare=SPARE if tolerance > CLOSE_BYTES else search.SPARE,
        )
    if outcome.best is not None:
        return outcome.best.result
    if outcome.last.step >= search.COARSEST:
        raise _does_not_fit(outcome.last.result, room, "even the coarsest steps are too many bytes")
    raise _does_not_fit(outcome.last.result, room, f"{outcome.trials} trials found none that fits")


def bits_filled(job: Job, bits: float, close: float = CLOSE) -> Trial:
    """The finest step whose `Trial.bits_per_weight` is at most `bits`, and at most `close` of it below.

    Raises UsageError where no tensor is quantized, BudgetError with the fewest bits that can be reached, and OutOfTime as
    `fill` does.
    """
    if not job.quantized:
        raise UsageError("bits a weight are those of quantized tensors, and here none is: give a budget")

    def run(step: float) -> Attempt[Trial]:
        trial = job.run(step)
        return Attempt(step, trial.bits_per_weight, trial)

    weights = max(job.weights(job.quantized), 1)
    if not job.searched:
        outcome = search.Outcome(None, run(1.0), 1)
        outcome = outcome if outcome.last.size > bits else search.Outcome(outcome.last, outcome.last, 1)
    elif guided.is_worth(job):
        outcome = guided.largest_that_fits(job, run, bits, close * bits, lambda told: told.bits / weights, 8 / weights)
    else:
        start = _foreseen(job, lambda x: job.expected_bytes(x) * 8 / weights, (1 - close) * bits, 1.0, EXPECTED_CLOSE)
        outcome = search.largest_that_fits(
            run,
            bits,
            start=start,
            finest=job.finest,
            per_octave=_slope(job, start) * 8 / weights,
            tolerance=close * bits,
        )
    if outcome.best is None:
        why = "" if job.searched else ", for every step size is fixed by --set"
        raise BudgetError(f"{bits:g} bits a weight cannot be met: the fewest tried were {outcome.last.size:.3f}{why}")
    return outcome.best.result


def _as_it_is(job: Job, room: int) -> Trial:
    """The only trial of a job whose steps are all fixed. Raises BudgetError where it does not fit."""
    trial = job.run(1.0)
    if trial.size > room:
        why = "every step size is fixed by --set" if job.quantized else "no tensor is quantized"
        raise _does_not_fit(trial, room, why)
    return trial


def _promising(job: Job, aim: float) -> float:
    """A step that should give about `aim` bytes.

    From 3 bits a weight on, files came out 0.05 to 0.09% larger than expected (golf3m and 36M synthetic weights).
    """
    tolerance = EXPECTED_CLOSE * aim + EXPECTED_BYTES
    kept = job.kept_bytes() if job.foresees() else 0
    return _foreseen(job, job.expected_bytes, aim - kept, _bytes_per_octave(job), tolerance)


def _foreseen(job: Job, size: Callable[[float], float], aim: float, per_octave: float, tolerance: float) -> float:
    """The step at which an expected size is `aim`, where the method can tell sizes, else 1."""
    if not job.foresees():
        return 1.0
    return float(2.0 ** search.crossing(lambda x: size(2**x), aim, per_octave, tolerance))


def _bytes_per_octave(job: Job) -> float:
    """By how much an artifact shrinks when the knob doubles, while codes are wide: a bit for each searched weight."""
    return job.weights(job.searched) / 8


def _slope(job: Job, step: float) -> float:
    """The same at a step, where the method can tell sizes: less where codes are narrow."""
    per_octave = _bytes_per_octave(job)
    return search.slope_at(job.expected_bytes, step, per_octave) if job.foresees() else per_octave


def _does_not_fit(trial: Trial, room: int, why: str) -> BudgetError:
    largest = sorted(trial.shares().tensors.items(), key=lambda item: -item[1])[:3]
    names = ", ".join(f"{name} {show_size(num_bytes)}" for name, num_bytes in largest)
    return BudgetError(
        f"does not fit: {show_size(room)} are left for the model and the smallest reachable is {show_size(trial.size)} "
        f"({why}); most of it: {names}"
    )
