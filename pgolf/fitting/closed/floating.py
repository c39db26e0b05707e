"""A job that rounds what the weights of a student have become, and keeps what each unit was when it was rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from pgolf.common.one_thread import one_thread_each
from pgolf.fitting.closed.student import Student
from pgolf.fitting.closed.units import Unit, may_move, members, slices_of
from pgolf.fitting.trial import Job
from pgolf.packer.plane import Plane


class Floating:
    """job: of the weights as they were when they were last taken over. small: its kept tensors that move."""

    def __init__(self, job: Job, student: Student) -> None:
        plain = torch.contiguous_format  # slices are views then, whatever the checkpoint's strides
        mine = {n: job.source.tensors[n].clone(memory_format=plain) for n in student.places}
        self.job = replace(job, source=replace(job.source, tensors=job.source.tensors | mine))
        self.small = [name for name in mine if name in job.kept and may_move(job, name)]
        self._student = student

    def refresh(self, units: Sequence[Unit]) -> None:
        """Take over what the student's weights have become."""
        for unit in (each for whole in units for each in members(self.job, whole)):
            whole = self.job.source.tensors[unit.name], self._student.weights[unit.name]
            mine, theirs = (part.reshape(slices_of(self.job, unit.name), -1)[unit.index] for part in whole)
            mine.copy_(theirs)

    def refresh_small(self) -> None:
        """The same of the kept tensors that move."""
        for name in self.small:
            self.job.source.tensors[name].copy_(self._student.weights[name])

    def apart_from_steps(self) -> Job:
        """The job with the small tensors as they are now, whatever becomes of them."""
        now = {name: self.job.source.tensors[name].clone() for name in self.small}
        return replace(self.job, source=replace(self.job.source, tensors=self.job.source.tensors | now))


def rounded(job: Job, units: Sequence[Unit], step: float) -> dict[Unit, Plane]:
    """Units at one position of the knob, several at a time."""
    with one_thread_each() as pool:
        return dict(zip(units, pool.map(lambda u: job.round(u.name, u.index, step), units), strict=True))
