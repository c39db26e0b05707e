"""Where the knob goes: the finest step that fills a byte budget, or the coarsest that a rise of the loss allows.

What will surprise you: one number, `step`, multiplies the step size of every tensor whose step nobody fixed, and sizes
come from the coder itself. Expected sizes only choose where to start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pgolf.common.sizes import show_size
from pgolf.errors import BudgetError, UsageError
from pgolf.fitting import plan, search
from pgolf.fitting.trial import Job, Trial

CLOSE = 0.001  # a search ends when the artifact is this close below the budget...
CLOSE_ENOUGH = 0.04  # the same in a hurry: the first trial should do
CLOSE_BYTES = 200  # ...or this close
EXPECTED_CLOSE = 1e-4  # expected sizes are solved to this share of the budget...
EXPECTED_BYTES = 10  # ...and this
RISE_OCTAVES = 0.02  # a target rise is met to 1.4%


def fill(job: Job, plans: Mapping[str, plan.TensorPlan], limit: int, code_bytes: int, close: float = CLOSE) -> Trial:
    """The finest step whose artifact is at most `limit` bytes together with the code, and at most `close` of it below.

    Raises BudgetError with the smallest reachable size and what dominates it, and OutOfTime where nothing fitted when
    the job's time was up.
    """
    room = limit - code_bytes
    if room <= 0:
        raise BudgetError(f"the code alone counts {show_size(code_bytes)}, the budget is {show_size(limit)}")
    searched = [name for name, p in plans.items() if p.searched]
    if not searched:
        trial = job.run(plans, 1.0)
        if trial.size > room:
            fixed = any(p.settings is not None for p in plans.values())
            raise _does_not_fit(trial, room, "every step size is fixed by --set" if fixed else "no tensor is quantized")
        return trial

    def run(step: float) -> search.Trial[Trial]:
        trial = job.run(plans, step)
        job.progress("fill the budget", min(trial.size, room), room)
        return search.Trial(step, trial.size, trial)

    tolerance = max(close * room, CLOSE_BYTES)
    per_octave = sum(job.source.tensors[name].numel() for name in searched) / 8
    outcome = search.largest_that_fits(
        run,
        room,
        start=_promising(job, plans, room - tolerance, per_octave),
        finest=max(plans[name].finest for name in searched),
        per_octave=per_octave,
        tolerance=tolerance,
    )
    if outcome.best is None:
        coarsest = outcome.last.step >= search.COARSEST
        why = (
            "even the coarsest steps are too many bytes"
            if coarsest
            else f"{outcome.trials} trials found none that fits"
        )
        raise _does_not_fit(outcome.last.result, room, why)
    return outcome.best.result


def _promising(job: Job, plans: Mapping[str, plan.TensorPlan], aim: float, per_octave: float) -> float:
    """A step that should give about `aim` bytes, from expected sizes where the method can tell, else 1.

    From 3 bits a weight on, files came out 0.05 to 0.09% larger than expected (golf3m and 36M synthetic weights).
    """
    if not job.foresees(plans):
        return 1.0
    octaves = search.crossing(
        lambda x: job.expected_bytes(plans, 2**x), aim, per_octave, EXPECTED_CLOSE * aim + EXPECTED_BYTES
    )
    return 2.0**octaves


def reach(job: Job, plans: Mapping[str, plan.TensorPlan], target_rise: float) -> Trial:
    """The coarsest step whose predicted rise of the loss is at most `target_rise`; the rise goes with its square.

    Raises UsageError without curvature: nothing can be predicted then.
    """
    if not job.curvatures or not any(p.searched for p in plans.values()):
        raise UsageError("a target rise needs curvature (--model or --curvature) and a step that is not fixed")
    finest = max(p.finest for p in plans.values() if p.searched)

    def run(inverse_step: float) -> search.Trial[Trial]:
        trial = job.run(plans, 1 / inverse_step)
        rise = max(job.rise(trial), 1e-300)
        return search.Trial(inverse_step, math.log2(rise), trial)

    outcome = search.largest_that_fits(
        run, math.log2(target_rise), start=1.0, finest=1 / search.COARSEST, per_octave=2.0, tolerance=RISE_OCTAVES
    )
    if outcome.best is None or outcome.best.result.step < finest:
        raise BudgetError(f"a predicted rise of {target_rise:.3g} nats per token is out of this method's reach")
    return outcome.best.result


def _does_not_fit(trial: Trial, room: int, why: str) -> BudgetError:
    largest = sorted(trial.encoded.tensor_bits.items(), key=lambda item: -item[1])[:3]
    names = ", ".join(f"{name} {show_size(bits / 8)}" for name, bits in largest)
    return BudgetError(
        f"does not fit: {show_size(room)} are left for the model and the smallest reachable is {show_size(trial.size)} "
        f"({why}); most of it: {names}"
    )
