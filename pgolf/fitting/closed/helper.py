"""The other ranks' side of a closed loop that several share: see party.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, distributed

from pgolf.common import ranks
from pgolf.errors import PgolfError
from pgolf.fitting.closed.floating import Floating, rounded
from pgolf.fitting.closed.party import Card, Shared, card_of, group_of, unless_halted
from pgolf.fitting.closed.repair import Diverged, Pace
from pgolf.fitting.closed.shares import Shares
from pgolf.fitting.closed.student import Student
from pgolf.fitting.closed.units import Unit
from pgolf.fitting.live import Live
from pgolf.fitting.plan import TensorPlan
from pgolf.fitting.trial import Job
from pgolf.packer.plane import Plane

Words = dict[str, Callable[..., Any]]


class Helper:
    """Does to its student what rank 0 says, and answers."""

    def __init__(self, job: Job | None, live: Live | None) -> None:
        """job, live: what `pack` was given here; None where that is not rank 0's, or is nothing."""
        self._job, self._live = job, live
        self._student: Student | None = None
        self._group: Any = None
        self._words: Words = {
            "join": self._join,
            "group": self._in_group,
            "steps": self._steps,
            "leave": self._leave,
        }
        self._in_loop: Words = {}  # of a rank of the party

    def __call__(self, word: str, *arguments: Any) -> Any:
        """What is answered; None of a rank that only waits."""
        work = self._words.get(word) or self._in_loop.get(word)
        return work(*arguments) if work else None

    def _join(self, plans: Mapping[str, TensorPlan]) -> Card | None:
        if self._job is None or self._live is None:
            return None
        self._job = replace(self._job, plans=plans)
        try:
            self._student = Student(self._job.source, self._live.model, self._live.logits)
        except PgolfError:  # rank 0 has another model
            return None
        return card_of(self._student)

    def _in_group(self, able: Sequence[int], backend: str) -> None:
        group = group_of(able, backend)
        self._group = group if ranks.rank() in able else None

    def _steps(self, moving: Mapping[Unit, int], text: Tensor, pace: Pace, worst: float) -> None:
        if self._group is None:
            return
        job, student, group = self._job, self._student, self._group
        assert job is not None
        assert student is not None
        student.reset({name: job.source.tensors[name] for name in student.places})
        floating = Floating(job, student)
        repair = Shared(Shares(student, group), student, moving, text, pace, worst, lambda tokens, kl: None)

        def at_work(work: Callable[[], None]) -> None:
            with student.at_work(gradients=True):
                try:
                    unless_halted(work)()
                except Diverged:  # rank 0 found the same
                    return

        def mine(parts: Sequence[Sequence[Unit]], step: float) -> dict[Unit, Plane]:
            units = parts[distributed.get_rank(group)]
            floating.refresh(units)
            return rounded(floating.job, units, step)

        self._in_loop = {
            "freeze": repair.freeze,
            "restore": repair.restore,
            "rehearse": lambda: at_work(repair.rehearse),
            "run": lambda steps: at_work(lambda: repair.run(steps)),
            "round": mine,
        }

    def _leave(self) -> None:
        if self._group is not None:
            distributed.destroy_process_group(self._group)
        self._group, self._student, self._in_loop = None, None, {}
