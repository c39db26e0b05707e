"""What is rounded together: slices of tensors in the order in which the model uses them, in groups of about one size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pgolf.fitting.plan import KEPT_BY_METHOD, KEPT_BY_RULE
from pgolf.fitting.trial import Job
from pgolf.quant.slices import matrix_shape


@dataclass(frozen=True)
class Unit:
    """Slice `index` of a quantized tensor, 0 of a matrix or of a tensor that is kept. The matrix that leads a stack stands for
    all that are rounded with it where units are rounded, and for itself where they move."""

    name: str
    index: int


def units_in_order(job: Job, uses: Iterable[tuple[str, int | None]], ties: dict[str, str]) -> list[Unit]:
    """Every slice of every quantized tensor once, by its first use; what no use was seen of comes last.

    uses: of `quant.curvature.uses.in_order`, by the module's names. ties: the module's name -> the checkpoint's.
    """
    slices = {name: slices_of(job, name) for name in job.leaders}
    leads = {each: name for name in job.leaders for each in job.together(name)}
    order: dict[Unit, None] = {}
    for theirs, index in uses:
        name = leads.get(ties.get(theirs, theirs), "")
        if name in slices:
            which = range(slices[name]) if index is None else [index] if index < slices[name] else []
            order |= {Unit(name, k): None for k in which}
    order |= {Unit(name, k): None for name, count in slices.items() for k in range(count)}
    return list(order)


def slices_of(job: Job, name: str) -> int:
    """How many matrices a quantized tensor is."""
    shape = matrix_shape(tuple(job.source.tensors[name].shape))
    assert shape is not None
    return shape[0]


def members(job: Job, unit: Unit) -> list[Unit]:
    """What moves and freezes one by one of a unit that is rounded as one, in the order of its rows."""
    names = job.together(unit.name)
    return [Unit(name, 0) for name in names] if len(names) > 1 else [unit]


def weights_of(job: Job, unit: Unit) -> int:
    """Of all that is rounded as one."""
    return sum(job.weights([each.name]) // slices_of(job, each.name) for each in members(job, unit))


def grouped(job: Job, units: Sequence[Unit], count: int) -> list[list[Unit]]:
    """`units` in their order, cut into at most `count` groups of about as many weights each, none of them empty."""
    total, done = sum(weights_of(job, unit) for unit in units), 0.0
    groups: list[list[Unit]] = [[]]
    for unit in units:
        middle = done + weights_of(job, unit) / 2
        if groups[-1] and middle * count >= total * len(groups):
            groups.append([])
        groups[-1].append(unit)
        done += weights_of(job, unit)
    return [group for group in groups if group]


def may_move(job: Job, name: str) -> bool:
    """Whether a kept tensor is a weight that nobody asked to leave as it is."""
    asked = job.plans[name].kept in {KEPT_BY_RULE, KEPT_BY_METHOD}
    return not asked and name not in job.source.kept and job.source.tensors[name].numel() > 0
