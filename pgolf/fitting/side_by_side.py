"""Matrices of one kind that a method makes side by side on a device: as many launches for all of them as for one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from torch import Tensor

from pgolf.common.one_thread import one_thread_each
from pgolf.fitting.market import Form
from pgolf.fitting.plan import TensorPlan
from pgolf.fitting.work import Work
from pgolf.packer.plane import Plane
from pgolf.quant import METHODS
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.settings import Settings

MOST = 1 << 25  # weights that lie on the device at once, some eight numbers for each


class Matrices(Protocol):
    """What is asked of a `Job`."""

    @property
    def plans(self) -> Mapping[str, TensorPlan]: ...
    @property
    def curvatures(self) -> Mapping[str, list[MatrixCurvature | None]]: ...
    @property
    def work(self) -> Work | None: ...
    def prepare(self, name: str) -> list[Any]: ...
    def slice_of(self, name: str, index: int) -> tuple[Tensor, MatrixCurvature | None]: ...
    def kept_form(self, name: str, step: float) -> Form | None: ...
    def hurry(self, weights: int) -> None: ...


@dataclass(frozen=True)
class _Matrix:
    name: str
    index: int
    weight: Tensor
    prepared: object
    settings: Settings


def rounded(job: Matrices, names: Iterable[str], step: float) -> dict[str, list[Plane]]:
    """Tensor -> the planes of its slices, of tensors whose curvature is on a device and whose method has a way for several."""
    able = [name for name in names if _may_gain(job, name, step)]
    if not able:
        return {}
    with one_thread_each() as pool:
        list(pool.map(job.prepare, able))
    kinds: dict[Hashable, list[_Matrix]] = defaultdict(list)
    for name in able:
        settings = job.plans[name].at(step)
        staged = METHODS[settings.method].staged
        assert staged is not None
        assert staged.kind is not None
        for index, prepared in enumerate(job.prepare(name)):
            weight = job.slice_of(name, index)[0]
            if (kind := staged.kind(weight, prepared, settings)) is not None:
                kinds[settings.method, kind].append(_Matrix(name, index, weight, prepared, settings))
    parts = [part for alike in kinds.values() for part in _parts(alike)]
    parts.sort(key=lambda part: -sum(matrix.weight.numel() for matrix in part))
    with one_thread_each() as pool:  # each on a stream of its own: a kind of few blocks leaves room for others
        planes = list(pool.map(lambda part: _finished(job, part), parts))
    made = {
        (m.name, m.index): plane
        for part, some in zip(parts, planes, strict=True)
        for m, plane in zip(part, some, strict=True)
    }
    slices = {name: len(job.prepare(name)) for name, _ in made}
    return {
        n: [made[n, i] for i in range(count)]
        for n, count in slices.items()
        if all((n, i) in made for i in range(count))
    }


def _finished(job: Matrices, part: Sequence[_Matrix]) -> list[Plane]:
    job.hurry(sum(matrix.weight.numel() for matrix in part))
    staged = METHODS[part[0].settings.method].staged
    assert staged is not None
    assert staged.finish_together is not None
    return staged.finish_together([m.weight for m in part], [m.prepared for m in part], [m.settings for m in part])


def _may_gain(job: Matrices, name: str, step: float) -> bool:
    plan = job.plans[name]
    known = job.curvatures.get(name, [])
    if plan.settings is None or all(each is None or each.inputs.device.type == "cpu" for each in known):
        return False
    staged = METHODS[plan.settings.method].staged
    if staged is None or staged.kind is None or staged.finish_together is None:
        return False
    kept = job.work is not None and any(job.work.plane(name, index, step) for index in range(len(known)))
    return not kept and job.kept_form(name, step) is None


def _parts(alike: list[_Matrix]) -> Iterator[list[_Matrix]]:
    """At most MOST weights at a time, of one matrix at least."""
    each = max(1, MOST // max(alike[0].weight.numel(), 1))
    for _, some in groupby(enumerate(alike), lambda pair: pair[0] // each):
        yield [matrix for _, matrix in some]
