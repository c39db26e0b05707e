"""The search of a large model: its steps are chosen on a sample, so that one or two whole trials are enough.

A whole trial of 0.5B weights takes minutes. A sample tells its size to a few parts in ten thousand (sample.py), and after a first
whole trial much better: by how much it was wrong there it is wrong nearby.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pgolf.fitting import sample, search
from pgolf.fitting.sample import Sample, Told
from pgolf.fitting.search import Attempt, Outcome
from pgolf.fitting.trial import Job

T = TypeVar("T")

MANY = 1 << 26  # weights of a model that is searched so
SHARE, MOST = 1 / 16, 1 / 4  # of its weights: a sample at first, and at most
SURE = 0.6  # of the tolerance: WIDTH standard errors of a sample that is large enough
WIDTH = 2.0
BELOW, ROOM = 0.5, 0.15  # of the tolerance: how far below the target is aimed, and how far from there is near enough
EXPECTED_CLOSE = 1e-3  # of the target: expected sizes only choose where the sample begins
TRIALS = 2  # whole ones, before the search goes on without the sample

Value = Callable[[Told], float]


def is_worth(job: Job) -> bool:
    """Whether a job's steps are to be chosen on a sample."""
    return job.weights(job.quantized) >= MANY


def largest_that_fits(
    job: Job, run: Callable[[float], Attempt[T]], target: float, tolerance: float, value: Value, per_byte: float = 1.0
) -> Outcome[T]:
    """As `search.largest_that_fits`, for a job that it `is_worth`.

    value: what `run` measures, from what a sample tells; it falls by `per_byte` with every byte.
    """
    guide, best = _guide(job, target, tolerance, value, per_byte), None
    for trials in range(1, TRIALS + 1):
        try:
            trial = run(guide.step_for(target, tolerance))
        except search.OutOfTime:
            if best is None:
                raise
            return Outcome(best, best, trials)
        if trial.size <= target and (best is None or trial.size >= best.size):
            best = trial
        if target - tolerance <= trial.size <= target:
            return Outcome(best, trial, trials)
        guide.learn(trial)
    found = search.largest_that_fits(
        run,
        target,
        start=guide.step_for(target, tolerance),
        finest=job.finest,
        per_octave=guide.per_octave,
        tolerance=tolerance,
        spare=BELOW,
    )
    kept = [each for each in (best, found.best) if each is not None]
    return Outcome(max(kept, key=lambda each: each.size, default=None), found.last, TRIALS + found.trials)


@dataclass
class _Guide:
    """A sample, what it told so far by step, and how many times as much the whole took where it was last tried.

    per_octave: by how much the value falls when the step doubles.
    """

    look: Sample
    value: Value
    per_octave: float
    step: float
    told: dict[float, Told] = field(default_factory=dict)
    factor: float = 1.0

    def at(self, step: float) -> Attempt[None]:
        """What a whole trial should give."""
        if step not in self.told:
            self.told[step] = self.look.told(step)
        return Attempt(step, self.factor * self.value(self.told[step]), None)

    def error(self) -> float:
        """The standard error of the sample where it begins, as a share of what it tells."""
        self.at(self.step)
        return self.told[self.step].error

    def learn(self, trial: Attempt[T]) -> None:
        """Take a whole trial for true."""
        self.factor *= trial.size / self.at(trial.step).size

    def step_for(self, target: float, tolerance: float) -> float:
        """The step whose whole trial should give BELOW of the tolerance less than the target."""
        found = search.largest_that_fits(
            self.at,
            target - (BELOW - ROOM) * tolerance,
            start=self.step,
            finest=self.look.whole.finest,
            per_octave=self.per_octave,
            tolerance=2 * ROOM * tolerance,
            spare=0.5,
        )
        self.step = (found.best or found.last).step
        return self.step


def _guide(job: Job, target: float, tolerance: float, value: Value, per_byte: float) -> _Guide:
    """A sample that is sure enough of its sizes about the target, or as large as one may be."""
    share, look = SHARE, sample.of(job, SHARE)
    step, per_octave = 1.0, job.weights(job.searched) / 8
    if job.foresees():

        def expected(octaves: float) -> float:
            num_bytes = look.expected_bytes(2**octaves)
            return value(Told(look.kept_bytes + num_bytes, 8 * num_bytes, 0.0))

        step = float(2 ** search.crossing(expected, target, per_octave * per_byte, EXPECTED_CLOSE * target))
        per_octave = search.slope_at(look.expected_bytes, step, per_octave)
    guide = _Guide(look, value, per_octave * per_byte, min(max(step, job.finest), search.COARSEST))
    while WIDTH * guide.error() * target > SURE * tolerance and share < MOST:
        share *= 2
        guide = replace(guide, look=sample.of(job, share), told={})
    return guide
