"""How many bytes a model would take and what that would cost, while it is still being trained: seconds, no data needed.

A small model is simply packed. Of a large one, whole tensors are quantized and coded, spread evenly over the sizes there
are; the rest follows from each tensor's foreseen bits, which cost little, times what the sample took over its own.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.common.one_thread import one_thread_each
from pgolf.errors import BudgetError
from pgolf.fitting import budget as budgets
from pgolf.fitting import search
from pgolf.fitting.deadline import ways
from pgolf.fitting.goal import goal_of
from pgolf.fitting.inputs import job_of
from pgolf.fitting.plan import unread
from pgolf.fitting.sample import evenly, taken_bits
from pgolf.fitting.trial import Job, Trial

if TYPE_CHECKING:
    from pgolf.common.sizes import Size
    from pgolf.fitting.inputs import Model
    from pgolf.quant.curvature.store import Curvature
    from pgolf.quant.settings import Settings

SAMPLE = 1 << 20  # weights that are quantized for an estimate
FEWEST = 4  # tensors of a sample
TINY = 1 / 16  # of the mean size: smaller ones tell nothing of the others and weigh nothing
LEAST_BAR = 0.005  # of the bytes
WIDTH = 2.0  # standard errors in the bar


@dataclass(frozen=True)
class Estimate:
    """What `pack` is expected to give.

    num_bytes ± error_bytes: of the artifact; the bar is the scatter of foreseen over taken bits among the sampled tensors,
    LEAST_BAR of the bytes at least. step: the knob, where it is searched. relative_error: ‖W − Ŵ‖/‖W‖ over all
    quantized weights. loss_rise: nats per token, None without curvature. sampled: share of the quantized weights that
    were really quantized; where it is 1 the bytes are exact.
    """

    num_bytes: int
    error_bytes: int
    bits_per_weight: float
    relative_error: float
    loss_rise: float | None
    step: float
    sampled: float
    seconds: float
    budget: int | None = None
    code_bytes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def total_bytes(self) -> int:
        """Artifact and code."""
        return self.num_bytes + sum(self.code_bytes.values())

    @property
    def fits(self) -> bool | None:
        """Whether the budget holds artifact and code even at the upper end of the bar; None without a budget."""
        return None if self.budget is None else self.total_bytes <= self.budget

    def to_json(self) -> dict[str, Any]:
        """Everything, derived figures included."""
        return asdict(self) | {"total_bytes": self.total_bytes, "fits": self.fits}


def estimate(
    model: Model,
    *,
    budget: Size | None = None,
    curvature: Curvature | None = None,
    method: str | None = None,
    rules: str | Sequence[str] = (),
    settings: Settings | None = None,
    code: str | Path | Sequence[str | Path] = (),
    state: str | None = None,
    drop: str | Sequence[str] = (),
) -> Estimate:
    """What `pgolf.pack` with the same arguments would give, in seconds and without data.

    Without a budget the settings are taken as they are. curvature: makes the rise of the loss known; during training
    that of an earlier step does. Raises as `pack` does, but a model that cannot be made to fit gives fits == False.
    """
    began = time.perf_counter()
    goal = goal_of(budget, code=code)
    job = job_of(
        model, curvature, method=method, rules=rules, settings=settings, search=goal.moves, state=state, drop=drop
    )
    made = _made(job, goal.room() if job.searched else None)
    rise, error = _damage(job, made.trial)
    weights = max(job.weights(job.quantized), 1)
    return Estimate(
        num_bytes=round(made.num_bytes),
        error_bytes=math.ceil(made.bar),
        bits_per_weight=made.bits / weights,
        relative_error=error,
        loss_rise=rise,
        step=made.trial.step,
        sampled=job.weights(made.names) / weights,
        seconds=time.perf_counter() - began,
        budget=goal.budget,
        code_bytes=dict(goal.code_bytes),
        notes=[
            *job.source.notes,
            *unread(job.plans),
            *job.notes,
            *([] if job.curvatures else ["without curvature the rise of the loss is not known"]),
        ],
    )


@dataclass(frozen=True)
class _Made:
    """trial: of the tensors `names`. num_bytes ± bar: of the whole artifact; bits: of all quantized tensors in it."""

    trial: Trial
    names: list[str]
    num_bytes: float
    bits: float
    bar: float


def _made(job: Job, room: int | None) -> _Made:
    few = job.weights(job.quantized) <= SAMPLE
    fast = ways(job)[0]
    if few or fast.plans == job.plans:
        trial = _whole(job, room)
        return _Made(trial, job.quantized, trial.size, sum(taken_bits(job, trial, job.leaders).values()), 0.0)
    if job.foresees():
        return _from_foreseen(job, room)
    return _from_sample(job, _whole(fast, room), room)


def _whole(job: Job, room: int | None) -> Trial:
    """The pack itself, or the smallest one if the room is too small."""
    if room is None:
        return job.run(1.0)
    try:
        return budgets.fill(job, room)
    except BudgetError:
        return job.run(search.COARSEST)


def _from_foreseen(job: Job, room: int | None) -> _Made:
    """Foreseen bits of all tensors, corrected by a sample's; with a budget, at the step that then fills it."""
    names = _sample(job)
    others = job.kept_bytes()
    step, ratio, headers = 1.0, 1.0, 0.0
    for _ in range(1 if room is None else 2):  # the ratio hardly depends on the step
        if room is not None:
            step = _filling(job, room - others - headers, ratio)
        trial = job.only(names).run(step)
        foreseen = job.expected_bits(step)
        ratio, scatter = _ratio(taken_bits(job, trial, names), foreseen)
        headers = _header_bytes(job, trial, names) * len(foreseen) / len(names)
    bits = sum(foreseen.values()) * ratio
    num_bytes = others + headers + bits / 8
    if room is not None and num_bytes <= (1 + LEAST_BAR) * room:
        num_bytes = min(num_bytes, room)  # pack's search fills it
    return _Made(trial, names, num_bytes, bits, max(scatter * bits / 8, LEAST_BAR * num_bytes))


def _filling(job: Job, aim: float, ratio: float) -> float:
    """The step at which the foreseen bits of all quantized tensors, times `ratio`, are `aim` bytes."""

    def size(octaves: float) -> float:
        return job.expected_bytes(2**octaves) * ratio

    return float(2 ** search.crossing(size, aim, job.weights(job.quantized) / 8, 1e-4 * max(aim, 1)))


def _from_sample(job: Job, stand_in: Trial, room: int | None) -> _Made:
    """A faster method's artifact, corrected by what a sample takes with the method itself and with the faster one."""
    names = _sample(job)
    trial = job.only(names).run(stand_in.step)
    fast = taken_bits(job, stand_in, job.leaders)
    ratio, scatter = _ratio(taken_bits(job, trial, names), fast)
    bits = sum(fast.values()) * ratio
    num_bytes = stand_in.size + (bits - sum(fast.values())) / 8
    if room is not None and stand_in.size <= room:
        num_bytes = min(num_bytes, room)  # the search fills it either way
    return _Made(trial, names, num_bytes, bits, max(scatter * bits / 8, LEAST_BAR * num_bytes))


def _sample(job: Job) -> list[str]:
    """Names of tensors of SAMPLE weights together, FEWEST at least, evenly from the smallest to the largest."""
    least = job.weights(job.quantized) / len(job.leaders) * TINY
    names = [name for name in job.leaders if job.weights(job.together(name)) >= least]
    ordered = sorted(names, key=lambda name: (job.weights([name]), name))
    count = min(len(ordered), max(FEWEST, len(ordered) * SAMPLE // job.weights(ordered)))
    return evenly(ordered, count)


def _ratio(taken: Mapping[str, float], foreseen: Mapping[str, float]) -> tuple[float, float]:
    """Σ taken / Σ foreseen over a sample, and the bar of its relative error: WIDTH standard errors."""
    ratios = [taken[name] / max(foreseen[name], 1.0) for name in taken]
    scatter = statistics.stdev(ratios) / statistics.mean(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else 0.0
    return sum(taken.values()) / max(sum(foreseen[name] for name in taken), 1.0), WIDTH * scatter


def _header_bytes(job: Job, trial: Trial, names: Sequence[str]) -> float:
    """What of a sample's artifact belongs to no tensor: header and tables."""
    return trial.size - sum(taken_bits(job, trial, names).values()) / 8


def _damage(job: Job, trial: Trial) -> tuple[float | None, float]:
    """(rise of the loss, relative error) of all quantized tensors, from those of a trial."""
    names = [name for name in job.quantized if name in trial.entries]
    with one_thread_each() as pool:
        damage = list(pool.map(lambda name: job.damage(name, trial.entries[name]), names))
    energy = [float(job.source.tensors[name].double().square().sum()) for name in names]
    lost = sum(e * (error or 0.0) ** 2 for e, (error, _) in zip(energy, damage, strict=True))
    known = [(job.weights([n]), rise) for n, (_, rise) in zip(names, damage, strict=True) if rise is not None]
    everywhere = job.weights(name for name in job.quantized if name in job.curvatures)
    rise = sum(r for _, r in known) * everywhere / sum(n for n, _ in known) if known else None
    return rise, math.sqrt(lost / max(sum(energy), 1e-300))
