"""Prices corrected by what was measured: where an artifact does far more harm than foreseen, the budget is filled anew.

Curvature is what a model's gradients say, and they need not say the truth: a lookup whose gradient is shrunk on purpose, an
autograd.Function that scales it, a path that is detached, a choice of experts that jumps. So whatever is run after packing and
does not behave as foreseen is asked for the cause: with the weights of one kind given back, how much of the damage is gone?
A kind that carries more than twice its foreseen share is priced by that, and the rest of the budget with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from pgolf.fitting.budget import meet
from pgolf.fitting.closed.student import Student
from pgolf.fitting.goal import Goal
from pgolf.fitting.live import Live
from pgolf.fitting.measure import tried
from pgolf.fitting.trial import Job, Trial
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.report.names import skeleton
from pgolf.scoring.divergence import Divergence

SURPRISING = 1.5  # times the foreseen rise
CERTAIN = 3.0  # standard errors that it is beyond that
UNDERPRICED = 2.0  # times its foreseen share: what a kind carries
COUNTS = 0.05  # of the KL: a share that is worth asking about
LARGEST = 2.0**20  # a correction
ROUNDS = 2
TOKENS = 4096  # of the text held back, to ask on
MOST_KINDS = 24


class Priced(NamedTuple):
    """A job, its trial, what that does on the text held back; factors: kind -> what its price was multiplied by."""

    job: Job
    trial: Trial
    found: Divergence
    factors: dict[str, float]


@dataclass(frozen=True)
class Patience:
    """until: time.perf_counter() at which all must be done; rounding: seconds that filling the budget took."""

    until: float = math.inf
    rounding: float = 0.0

    def lasts(self, kinds: int, measuring: float) -> bool:
        """Whether a round ends in time."""
        return time.perf_counter() + (kinds + 2) * measuring + 2 * self.rounding < self.until


def repriced(
    job: Job, trial: Trial, goal: Goal, student: Student, live: Live, patience: Patience | None = None
) -> Priced:
    """The trial and its job as they are, or the better ones that corrected prices gave. The student holds their weights.

    Factors are powers of two, so that they do not hang on the last bit of a sum.
    """
    patience = patience or Patience()
    began = time.perf_counter()
    best = Priced(job, trial, tried(job, trial, student, live), {})
    measuring, last = time.perf_counter() - began, best
    for _ in range(ROUNDS):
        groups = _kinds(last.job)
        if not _surprising(last) or not patience.lasts(len(groups), measuring):
            break
        wrong = _underpriced(last, groups, student, live)
        if not wrong:
            break
        factors = {
            kind: last.factors.get(kind, 1.0) * wrong.get(kind, 1.0) for kind in last.factors.keys() | wrong.keys()
        }
        again = _with_prices(last.job, {name: wrong[kind] for kind in wrong for name in groups[kind]})
        made = meet(again, goal)
        last = Priced(again, made, tried(again, made, student, live), factors)
        if last.found.kl < best.found.kl:
            best = last
    if last is not best:
        tried(best.job, best.trial, student, live)
    return best


def note_of(priced: Priced) -> list[str]:
    """What the report says of corrected prices."""
    told = [f"{kind} × {factor:g}" for kind, factor in sorted(priced.factors.items(), key=lambda pair: -pair[1])]
    return (
        [f"gradients did not tell what these weights are worth, so it was measured: {', '.join(told)}"] if told else []
    )


def _kinds(job: Job) -> dict[str, list[str]]:
    """Quantized tensors whose names differ in numbers alone; beyond MOST_KINDS those with the fewest weights together."""
    alike: dict[str, list[str]] = {}
    for name in job.quantized:
        alike.setdefault(skeleton(name), []).append(name)
    ordered = sorted(alike, key=lambda kind: (-job.weights(alike[kind]), kind))
    rest = [name for kind in ordered[MOST_KINDS - 1 :] for name in alike[kind]]
    if len(ordered) <= MOST_KINDS:
        return alike
    return {kind: alike[kind] for kind in ordered[: MOST_KINDS - 1]} | {"the rest": rest}


def _surprising(made: Priced) -> bool:
    """Whether the KL is certainly beyond what prices foresee; NaN is not for prices to mend."""
    foreseen = made.job.rise(made.trial)
    return bool(made.job.curvatures) and made.found.kl - CERTAIN * made.found.kl_error > SURPRISING * foreseen


def _underpriced(made: Priced, groups: Mapping[str, list[str]], student: Student, live: Live) -> dict[str, float]:
    """Kind -> how many times too cheap it is, of those that are. The student holds the trial's weights, before and after."""
    ids = live.held[: max(1, TOKENS // live.held.shape[1])]
    whole, found = student.divergence(ids).kl, dict[str, float]()
    for done, (kind, names) in enumerate(groups.items()):
        made.job.progress("price", done, len(groups))
        mine = [name for name in names if name in student.places and name in made.job.curvatures]
        packed = {name: student.weights[name] for name in mine}
        student.reset({name: made.job.source.tensors[name] for name in mine})
        share = whole - student.divergence(ids).kl
        student.weights |= packed
        foreseen = sum(made.job.damage(name, made.trial.entries[name])[1] or 0.0 for name in mine)
        if share > max(COUNTS * whole, UNDERPRICED * foreseen):
            found[kind] = min(2.0 ** round(math.log2(share / max(foreseen, share / LARGEST))), LARGEST)
    made.job.progress("price", len(groups), len(groups))
    return found


def _with_prices(job: Job, factors: Mapping[str, float]) -> Job:
    """The job with the curvature of some tensors multiplied."""
    dearer = {
        name: [known and _times(known, factors[name]) for known in slices]
        for name, slices in job.curvatures.items()
        if name in factors
    }
    return replace(
        job,
        curvatures={**job.curvatures, **dearer},
        prepared={name: made for name, made in job.prepared.items() if name not in factors},
        stalls={name: stall for name, stall in job.stalls.items() if name not in factors},
        foreseen={name: seen for name, seen in job.foreseen.items() if name not in factors},
        work=None,  # what is kept was rounded at the old prices
    )


def _times(known: MatrixCurvature, factor: float) -> MatrixCurvature:
    if known.G is None:
        return replace(known, H=known.H * factor)
    return replace(known, G=known.G * factor)
