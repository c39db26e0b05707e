"""Who takes the steps of a closed loop: one process alone, or all ranks of a job.

Rank 0 runs the loop. What it does to the weights it tells the others, word by word, and they do it to theirs, so that all hold
the same student: only codes and gradients are exchanged. Each rank has its share of the sequences of every step and of the
units of every group. A rank that was given other weights, or no model, waits until the pack is done.

The gradient is a sum over ranks: tuned bytes depend on how many there are, as they do on the number of threads. The other ranks'
side is helper.py.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, distributed

from pgolf.common import ranks
from pgolf.fitting.closed.floating import rounded
from pgolf.fitting.closed.repair import Diverged, Pace, Repair
from pgolf.fitting.closed.shares import Halted, Shares
from pgolf.fitting.closed.student import Student
from pgolf.fitting.closed.units import Unit, weights_of
from pgolf.fitting.trial import Crew, Job
from pgolf.fitting.work import key_of
from pgolf.packer.plane import Plane

Advance = Callable[[int, float], None]


class Party(Protocol):
    """Those who take the steps together; size: how many they are."""

    size: int

    def repair(
        self, student: Student, moving: Mapping[Unit, int], text: Tensor, pace: Pace, worst: float, advance: Advance
    ) -> Repair:
        """As `Repair` is made."""

    def rounded(self, job: Job, units: Sequence[Unit], step: float) -> dict[Unit, Plane]:
        """Units at one position of the knob. job: of the student's weights as they are."""

    def leave(self) -> None:
        """There are no more steps."""


class Alone:
    """This process."""

    size = 1

    def repair(
        self, student: Student, moving: Mapping[Unit, int], text: Tensor, pace: Pace, worst: float, advance: Advance
    ) -> Repair:
        """See Party."""
        return Repair(student, moving, text, pace, worst, advance)

    def rounded(self, job: Job, units: Sequence[Unit], step: float) -> dict[Unit, Plane]:
        """See Party."""
        return rounded(job, units, step)

    def leave(self) -> None:
        """See Party."""


class Card(NamedTuple):
    """What a rank can bring. weights: a fingerprint of its model's; host, device: where they lie."""

    weights: str
    host: str
    device: str


def joined(job: Job, student: Student) -> Party:
    """The ranks that hold the same job and the same model as this one, rank 0, which are told of it; or this process alone."""
    crew = job.crew
    if crew is None:
        return Alone()
    cards: list[Card | None] = crew.everybody("join", job.plans, mine=lambda: card_of(student))
    assert cards[0] is not None
    able = {rank: card for rank, card in enumerate(cards) if card is not None and card.weights == cards[0].weights}
    if len(able) == 1:
        return Alone()
    return Together(job, crew, [*able], _backend(list(able.values())))


class Together:
    """Rank 0's side of a party of several ranks."""

    def __init__(self, job: Job, crew: Crew, able: Sequence[int], backend: str) -> None:
        """able: the ranks that take part, rank 0 first. backend: of torch.distributed, over which gradients are summed."""
        self.size, self._crew, self._able = len(able), crew, able
        self._priced_alike = crew.prices(job)
        made = list[Any]()
        crew.everybody("group", able, backend, mine=lambda: made.append(group_of(able, backend)))
        (self._group,) = made

    def repair(
        self, student: Student, moving: Mapping[Unit, int], text: Tensor, pace: Pace, worst: float, advance: Advance
    ) -> Repair:
        """See Party."""
        self._crew.everybody("steps", dict(moving), text, pace, worst, mine=lambda: None)
        return _Led(self._crew, Shares(student, self._group), student, moving, text, pace, worst, advance)

    def rounded(self, job: Job, units: Sequence[Unit], step: float) -> dict[Unit, Plane]:
        """See Party."""
        if not self._priced_alike:
            return rounded(job, units, step)
        parts = _parts(job, units, self._able)
        answers = self._crew.everybody("round", parts, step, mine=lambda: rounded(job, parts[0], step))
        planes = {unit: plane for answer in answers if answer for unit, plane in answer.items()}
        return {unit: planes[unit] for unit in units}

    def leave(self) -> None:
        """See Party."""
        self._crew.everybody("leave", mine=lambda: distributed.destroy_process_group(self._group))


class Shared(Repair):
    """Steps whose gradients come from several ranks. Where one of these fails, they end on all."""

    def __init__(
        self,
        shares: Shares,
        student: Student,
        moving: Mapping[Unit, int],
        text: Tensor,
        pace: Pace,
        worst: float,
        advance: Advance,
    ) -> None:
        super().__init__(student, moving, text, pace, worst, advance, shares.slopes)
        self._shares = shares

    def run(self, steps: int) -> None:
        """See Repair. Raises Halted where another rank failed."""
        self._in_step(lambda: super(Shared, self).run(steps))

    def rehearse(self) -> None:
        """See Repair."""
        self._in_step(super().rehearse)

    def _in_step(self, work: Callable[[], None]) -> None:
        self._shares.expect(self.names)
        try:
            work()
        except (Halted, Diverged):  # which every rank finds at the same step
            raise
        except Exception:
            self._shares.close(failed=True)
            raise
        self._shares.close()


class _Led(Shared):
    """Rank 0's: everything that is done to the weights is told to the others first."""

    def __init__(self, crew: Crew, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._crew = crew

    def freeze(self, unit: Unit, value: Tensor) -> None:
        """See Repair."""
        self._crew.everybody("freeze", unit, value.cpu(), mine=lambda: super(_Led, self).freeze(unit, value))

    def restore(self, state: Mapping[str, Any]) -> None:
        """See Repair."""
        self._crew.everybody("restore", state, mine=lambda: super(_Led, self).restore(state))

    def rehearse(self) -> None:
        """See Repair."""
        self._crew.everybody("rehearse", mine=unless_halted(super().rehearse))

    def run(self, steps: int) -> None:
        """See Repair."""
        self._crew.everybody("run", steps, mine=unless_halted(lambda: super(_Led, self).run(steps)))


def unless_halted(work: Callable[[], None]) -> Callable[[], None]:
    """Whoever failed tells why."""

    def done() -> None:
        try:
            work()
        except Halted:
            return

    return done


def card_of(student: Student) -> Card:
    """What this rank can bring."""
    own = [part for name in sorted(student.own) for part in (name, student.own[name])]
    return Card(key_of(own), socket.gethostname(), str(student.device))


def _backend(cards: Sequence[Card]) -> str:
    """NCCL where every rank has a GPU of its own, else gloo."""
    places = {(card.host, card.device) for card in cards}
    apart = len(places) == len(cards) and all(card.device.startswith("cuda") for card in cards)
    return "nccl" if apart and distributed.is_nccl_available() else "gloo"


def group_of(able: Sequence[int], backend: str) -> Any:
    """Of the ranks that take part; every rank of the job has to call this."""
    return distributed.new_group([*able], backend=backend, timeout=ranks.PATIENCE)


def _parts(job: Job, units: Sequence[Unit], able: Sequence[int]) -> list[list[Unit]]:
    """Which units each of the party rounds: the largest first, each to whom least has fallen so far."""
    parts: list[list[Unit]] = [[] for _ in able]
    loads = [0] * len(able)
    for unit in sorted(units, key=lambda each: -weights_of(job, each)):
        mine = loads.index(min(loads))
        parts[mine].append(unit)
        loads[mine] += weights_of(job, unit)
    return parts
