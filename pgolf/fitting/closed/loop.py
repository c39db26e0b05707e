"""The closed loop: round one group of matrices, let all that still floats repair it, round the next.

Each group is rounded where the steps before left it, by the curvature taken once at the float weights; format and decoder
are those of any artifact. What floats goes down the KL from the unquantized model, which needs no labels. QuIP#
(arXiv 2402.04396) tunes so between the layers of its vector quantizer; here an entropy coder's budget is met meanwhile.

What will surprise you:
* The knob is set anew before every group, for what is left to round and what is left of the budget; the last group that
  a knob moves is searched with the whole artifact's true size.
* Sums of floats depend on the machine and its number of threads and ranks, and so do tuned bytes; what they decode to does
  not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pgolf.errors import BudgetError
from pgolf.fitting import search
from pgolf.fitting.closed.floating import Floating, rounded
from pgolf.fitting.closed.knob import Knob, coded, decoded
from pgolf.fitting.closed.repair import Repair
from pgolf.fitting.closed.student import Student
from pgolf.fitting.closed.units import Unit, members, slices_of, weights_of
from pgolf.fitting.closed.work import Work
from pgolf.fitting.search import Attempt
from pgolf.fitting.trial import Job, Trial, kept_entry
from pgolf.packer.format.artifact import Entry
from pgolf.packer.plane import Plane

CLOSE, CLOSE_BYTES = 0.0005, 100  # of the budget, and in bytes: an artifact ends this close below it


Rounded = Callable[[Job, Sequence[Unit], float], dict[Unit, Plane]]
"""(job of the weights as they are, units, step) → their planes."""


@dataclass(frozen=True)
class Made:
    """An artifact, and the job with the weights that it was rounded from."""

    trial: Trial
    job: Job


class Loop:
    """What is rounded so far, and at which steps."""

    def __init__(
        self, job: Job, opened: Trial, student: Student, room: int | None, rounding: Rounded = rounded
    ) -> None:
        """opened: the open loop's trial, whose knob this one starts with. room: bytes; None leaves the knob there. rounding: who
        rounds units."""
        self._room, self._rounding = room, rounding
        self._floating = Floating(job, student)
        self._job = self._floating.job
        self._knob = Knob(job, opened, room)
        self._planes: dict[Unit, Plane] = {}
        self._steps: dict[str, float] = {}

    def close(
        self, groups: Sequence[Sequence[Unit]], repair: Repair, steps: int, last_steps: int, work: Work
    ) -> list[Made]:
        """Round group after group, with steps after each; the artifact before and after the last steps.

        work: where it goes on, and is kept after each group.

        Raises Diverged; BudgetError where the last group cannot fill the budget. Inside `Student.at_work`.
        """
        searched = [i for i, group in enumerate(groups) if any(self._job.plans[unit.name].searched for unit in group)]
        ordered = [group for i, group in enumerate(groups) if i not in searched[-1:]] + [
            groups[i] for i in searched[-1:]
        ]
        done = self._resumed(work.kept(), repair)
        for i, group in enumerate(ordered[done:], done):
            left = [unit for each in ordered[i:] for unit in each]
            self._floating.refresh(left)
            self._floating.refresh_small()
            self._knob.turn(self._job, left, self._planes)
            if i + 1 < len(ordered):
                self._freeze(self._rounded(group, self._knob.step), repair)
                repair.run(steps)
                work.keep(partial(self._state, i + 1, repair))
        before = self._last(ordered[-1])
        self._freeze({unit: self._planes[unit] for unit in ordered[-1]}, repair)
        repair.run(last_steps)
        self._floating.refresh_small()
        after = self._coded()
        fits = self._room is None or after.trial.size <= self._room
        return [before, after] if fits else [before]

    def _state(self, done: int, repair: Repair) -> dict[str, Any]:
        """What `_resumed` needs to go on after `done` groups."""
        planes = torch.frombuffer(bytearray(coded(self._planes)), dtype=torch.uint8)
        knob = {"step": self._knob.step, "kept": self._knob.kept}
        return {"done": done, "planes": planes, "steps": self._steps} | knob | repair.state()

    def _resumed(self, state: dict[str, Any] | None, repair: Repair) -> int:
        """Go to where `state` was taken; how many groups are done."""
        if state is None:
            return 0
        self._freeze(decoded(state["planes"].numpy().tobytes()), repair)
        self._steps, self._knob.step, self._knob.kept = state["steps"], state["step"], state["kept"]
        repair.restore(state)
        return int(state["done"])

    def _rounded(self, group: Sequence[Unit], step: float) -> dict[Unit, Plane]:
        return self._rounding(self._job, group, step)

    def _freeze(self, rounded: Mapping[Unit, Plane], repair: Repair) -> None:
        self._planes |= rounded
        for unit, plane in rounded.items():
            self._steps[unit.name] = self._knob.step
            tensors = self._job.source.tensors
            value = torch.from_numpy(plane.reconstruct()).to(tensors[unit.name].dtype).float()
            parts = members(self._job, unit)
            rows = [len(tensors[each.name]) for each in parts] if len(parts) > 1 else [len(value)]
            for each, part in zip(parts, torch.split(value, rows), strict=True):
                repair.freeze(each, part)

    def _last(self, group: Sequence[Unit]) -> Made:
        """Round the last group so that the artifact fills the budget, where there is one and a knob."""

        def run(step: float) -> Attempt[Made]:
            self._planes |= self._rounded(group, step)
            made = self._coded(step)
            return Attempt(step, made.trial.size, made)

        if self._room is None or not any(self._job.plans[unit.name].searched for unit in group):
            made = run(self._knob.step).result
            if self._room is not None and made.trial.size > self._room:
                raise BudgetError("the closed loop left no tensor whose step could still fill the budget")
            return made
        outcome = search.largest_that_fits(
            run,
            self._room,
            start=self._knob.step,
            finest=max(self._job.plans[unit.name].finest for unit in group),
            per_octave=sum(weights_of(self._job, unit) for unit in group) / 8,
            tolerance=max(CLOSE * self._room, CLOSE_BYTES),
        )
        if outcome.best is None:
            raise BudgetError("the closed loop's last group cannot be coarse enough for the budget")
        self._knob.step = outcome.best.step
        self._planes |= self._rounded(group, outcome.best.step)
        return outcome.best.result

    def _coded(self, step: float | None = None) -> Made:
        """The artifact of what is rounded and kept now."""
        step = self._knob.step if step is None else step
        job = self._job
        entries: dict[str, Entry] = {name: kept_entry(job.source.tensors[name], job.plans[name]) for name in job.kept}
        for name in job.leaders:
            planes = [self._planes[Unit(name, index)] for index in range(slices_of(job, name))]
            entries |= job.entries_of(name, planes, self._steps.get(name, step))
        return Made(job.coded(entries, step), self._floating.apart_from_steps())
