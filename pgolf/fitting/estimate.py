"""How many bytes a model would take and what that would cost, while it is still being trained: seconds, no data needed.

What will surprise you:
* A small model is simply packed. Of a large one, whole tensors are quantized and coded, spread evenly over the sizes
  there are; the rest follows from each tensor's foreseen bits, which cost little, times what the sample took over its own.
* The error bar is the scatter of that ratio between the sampled tensors, never less than LEAST_BAR.
* Without curvature nobody can tell the rise of the loss, and the estimate does not pretend to.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pgolf.code.weigh import counted_bytes
from pgolf.common.sizes import Size, parse_size
from pgolf.errors import BudgetError, UsageError
from pgolf.fitting import budget as budgets
from pgolf.fitting import packing, search
from pgolf.fitting.deadline import ways
from pgolf.fitting.plan import TensorPlan
from pgolf.fitting.trial import Job, Trial, one_thread_each
from pgolf.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from pgolf.quant.curvature.store import Curvature
    from pgolf.quant.settings import Settings

SAMPLE = 1 << 20  # weights that are quantized for an estimate
FEWEST = 4  # tensors of a sample
LEAST_BAR = 0.005  # of the bytes
WIDTH = 2.0  # standard errors in the bar

Plans = Mapping[str, TensorPlan]


@dataclass(frozen=True)
class Estimate:
    """What `pack` is expected to give.

    num_bytes ± error_bytes: of the artifact. step: the knob, where it is searched. relative_error: ‖W − Ŵ‖/‖W‖ over all
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
    model: nn.Module | Mapping[str, Tensor] | Checkpoint | str | Path,
    *,
    budget: Size | None = None,
    curvature: Curvature | None = None,
    method: str | None = None,
    rules: str | Sequence[str] = (),
    settings: Settings | None = None,
    code: str | Path | Sequence[str | Path] = (),
    state: str | None = None,
) -> Estimate:
    """What `pgolf.pack` with the same arguments would give, in seconds and without data.

    Without a budget the settings are taken as they are. curvature: makes the rise of the loss known; during training
    that of an earlier step does. Raises as `pack` does, but a budget that cannot be met gives fits == False.
    """
    began = time.perf_counter()
    source = packing.as_checkpoint(model, state)
    limit = None if budget is None else parse_size(budget)
    code_bytes = {str(c): counted_bytes(c) for c in packing.listed(code)}
    job = Job(source, packing.known_curvatures(source, curvature), packing.silent, "rans")
    plans = packing.planned(source, method, rules, settings, search=limit is not None)
    searched = any(p.searched for p in plans.values())
    room = None if limit is None or not searched else limit - sum(code_bytes.values())
    if room is not None and room <= 0:
        raise UsageError(f"the code alone counts {sum(code_bytes.values())} bytes: nothing is left for a model")
    made = _made(job, plans, room)
    rise, error = _damage(job, plans, made.trial)
    weights = sum(source.tensors[name].numel() for name in _quantized(plans))
    return Estimate(
        num_bytes=round(made.num_bytes),
        error_bytes=math.ceil(made.bar),
        bits_per_weight=made.bits / max(weights, 1),
        relative_error=error,
        loss_rise=rise,
        step=made.trial.step,
        sampled=sum(source.tensors[name].numel() for name in made.names) / max(weights, 1),
        seconds=time.perf_counter() - began,
        budget=limit,
        code_bytes=code_bytes,
        notes=[*source.notes, *([] if job.curvatures else ["without curvature the rise of the loss is not known"])],
    )


@dataclass(frozen=True)
class _Made:
    """trial: of the tensors `names`. num_bytes ± bar: of the whole artifact; bits: of all quantized tensors in it."""

    trial: Trial
    names: list[str]
    num_bytes: float
    bits: float
    bar: float


def _quantized(plans: Plans) -> list[str]:
    return [name for name, p in plans.items() if p.settings is not None]


def _made(job: Job, plans: Plans, room: int | None) -> _Made:
    names = _quantized(plans)
    few = sum(job.source.tensors[name].numel() for name in names) <= SAMPLE
    fast = ways(plans)[0]
    if few or fast == plans:
        trial = _whole(job, plans, room)
        return _Made(trial, names, trial.size, sum(trial.encoded.tensor_bits[n] for n in names), 0.0)
    if job.foresees(plans):
        return _from_foreseen(job, plans, room)
    return _from_sample(job, plans, _whole(job, fast, room), room)


def _whole(job: Job, plans: Plans, room: int | None) -> Trial:
    """The pack itself, or the smallest one if the room is too small."""
    if room is None:
        return job.run(plans, 1.0)
    try:
        return budgets.fill(job, plans, room, 0)
    except BudgetError:
        return job.run(plans, search.COARSEST)


def _from_foreseen(job: Job, plans: Plans, room: int | None) -> _Made:
    """Foreseen bits of all tensors, corrected by a sample's; with a budget, at the step that then fills it."""
    names = _sample(job, plans)
    part, per_octave = _only(plans, names), sum(job.source.tensors[n].numel() for n in _quantized(plans)) / 8
    others = job.run({n: p for n, p in plans.items() if p.settings is None}, 1.0).size
    step, ratio, headers = 1.0, 1.0, 0.0
    for _ in range(1 if room is None else 2):  # the ratio hardly depends on the step
        if room is not None:
            aim = room - others - headers

            def size(x: float, ratio: float = ratio) -> float:
                return sum(job.expected_bits(plans, 2**x).values()) * ratio / 8

            step = 2 ** search.crossing(size, aim, per_octave, 1e-4 * max(aim, 1))
        trial = job.run(part, step)
        foreseen = job.expected_bits(plans, step)
        ratio, scatter = _ratio({n: trial.encoded.tensor_bits[n] for n in names}, foreseen)
        headers = _header_bytes(trial, names) * len(foreseen) / len(names)
    bits = sum(foreseen.values()) * ratio
    num_bytes = others + headers + bits / 8
    if room is not None and num_bytes <= (1 + LEAST_BAR) * room:
        num_bytes = min(num_bytes, room)  # pack's search fills it
    return _Made(trial, names, num_bytes, bits, max(scatter * bits / 8, LEAST_BAR * num_bytes))


def _from_sample(job: Job, plans: Plans, stand_in: Trial, room: int | None) -> _Made:
    """A faster method's artifact, corrected by what a sample takes with the method itself and with the faster one."""
    names = _sample(job, plans)
    trial = job.run(_only(plans, names), stand_in.step)
    fast = {name: stand_in.encoded.tensor_bits[name] for name in _quantized(plans)}
    ratio, scatter = _ratio({n: trial.encoded.tensor_bits[n] for n in names}, fast)
    bits = sum(fast.values()) * ratio
    num_bytes = stand_in.size + (bits - sum(fast.values())) / 8
    if room is not None and stand_in.size <= room:
        num_bytes = min(num_bytes, room)  # the search fills it either way
    return _Made(trial, names, num_bytes, bits, max(scatter * bits / 8, LEAST_BAR * num_bytes))


def _sample(job: Job, plans: Plans) -> list[str]:
    """Names of tensors of SAMPLE weights together, FEWEST at least, evenly from the smallest to the largest."""
    ordered = sorted(_quantized(plans), key=lambda n: (job.source.tensors[n].numel(), n))
    sizes = [job.source.tensors[n].numel() for n in ordered]
    count = min(len(ordered), max(FEWEST, len(ordered) * SAMPLE // sum(sizes)))
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def _only(plans: Plans, names: Sequence[str]) -> dict[str, TensorPlan]:
    return {name: plans[name] for name in names}


def _ratio(taken: Mapping[str, float], foreseen: Mapping[str, float]) -> tuple[float, float]:
    """Σ taken / Σ foreseen over a sample, and the bar of its relative error: WIDTH standard errors."""
    ratios = [taken[name] / max(foreseen[name], 1.0) for name in taken]
    scatter = statistics.stdev(ratios) / statistics.mean(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else 0.0
    return sum(taken.values()) / max(sum(foreseen[name] for name in taken), 1.0), WIDTH * scatter


def _header_bytes(trial: Trial, names: Sequence[str]) -> float:
    """What of a sample's artifact belongs to no tensor: header and tables."""
    return trial.size - sum(trial.encoded.tensor_bits[name] for name in names) / 8


def _damage(job: Job, plans: Plans, trial: Trial) -> tuple[float | None, float]:
    """(rise of the loss, relative error) of all quantized tensors, from those of a trial."""
    with one_thread_each() as pool:
        names = [n for n in _quantized(plans) if n in trial.entries]
        damage = list(pool.map(lambda n: job.damage(n, trial.entries[n]), names))
    size = {n: job.source.tensors[n].numel() for n in _quantized(plans)}
    energy = {n: float(job.source.tensors[n].double().square().sum()) for n in names}
    lost = sum(energy[n] * (error or 0.0) ** 2 for n, (error, _) in zip(names, damage, strict=True))
    known = [(size[n], rise) for n, (_, rise) in zip(names, damage, strict=True) if rise is not None]
    everywhere = sum(size[n] for n in size if n in job.curvatures)
    rise = sum(r for _, r in known) * everywhere / sum(n for n, _ in known) if known else None
    return rise, math.sqrt(lost / max(sum(energy.values()), 1e-300))
