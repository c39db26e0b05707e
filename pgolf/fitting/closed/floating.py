"""A job that rounds what the weights of a student have become, and keeps what each unit was when it was rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pgolf.common import scratch
from pgolf.common.one_thread import one_thread_each
from pgolf.fitting.closed.student import Student
from pgolf.fitting.closed.units import Unit, may_move, members, slices_of
from pgolf.fitting.trial import Job
from pgolf.packer.plane import Plane


class Floating:
    """job: of the weights as they were when they were last taken over. small: its kept tensors that move."""

    def __init__(self, job: Job, student: Student) -> None:
        large = job.weights(student.places) >= scratch.MANY
        mine = {name: _copied(job.source.tensors[name], large) for name in student.places}
        self.job = replace(job, source=replace(job.source, tensors=job.source.tensors | mine))
        self.small = [name for name in mine if name in job.kept and may_move(job, name) and student.moves(name)]
        self._student = student

    def refresh(self, units: Sequence[Unit]) -> None:
        """Take over what the student's weights have become."""
        every = (each for whole in units for each in members(self.job, whole))
        for unit in (each for each in every if self._student.moves(each.name)):
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


def _copied(tensor: Tensor, large: bool) -> Tensor:
    """A tensor of our own whose slices are views; of a large model in a file."""
    mine = tensor.detach().clone(memory_format=torch.contiguous_format)
    if not large or mine.device.type != "cpu" or mine.dim() == 0:
        return mine
    return torch.from_numpy(scratch.kept(mine.view(torch.uint8).numpy())).view(mine.dtype)


def rounded(job: Job, units: Sequence[Unit], step: float) -> dict[Unit, Plane]:
    """Units at one position of the knob, several at a time."""
    with one_thread_each() as pool:
        return dict(zip(units, pool.map(lambda u: job.round(u.name, u.index, step), units), strict=True))
