"""The knob of a closed loop: the step of what is left to round, from what the rounded groups took of the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pgolf.common.one_thread import one_thread_each
from pgolf.fitting import search
from pgolf.fitting.closed.units import Unit, weights_of
from pgolf.fitting.trial import Job, Trial
from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import Entry
from pgolf.packer.plane import Plane

EXACT = 1e-4  # of the bytes that are left: how exactly foreseen sizes are solved


class Knob:
    """Starts where the open loop ended, and spends what it spent. kept: bytes of the kept tensors, once steps have moved them:
    gains that were all 1 took none before."""

    def __init__(self, job: Job, opened: Trial, room: int | None) -> None:
        """room: bytes for the artifact; without it, or where sizes cannot be foreseen, the step stays as it is."""
        self.step, self._room, self._coder = opened.step, room, job.coder
        self.kept: int | None = None
        self._empty = len(coded({}, job.coder))
        if self.moves(job):
            self._over = (opened.size - job.kept_bytes()) / max(job.expected_bytes(opened.step), 1.0)  # sides, and luck

    def moves(self, job: Job) -> bool:
        """Whether there is a budget, a step to search, and sizes that can be foreseen."""
        return self._room is not None and bool(job.searched) and job.foresees()

    def turn(self, job: Job, left: Sequence[Unit], rounded: Mapping[Unit, Plane]) -> None:
        """Set the step so that the units that are left fill the budget. job: with the weights as they are now."""
        if not self.moves(job) or not rounded:
            return
        assert self._room is not None
        if self.kept is None:
            self.kept = job.kept_bytes()
        room = self._room - self.kept - self._spent(rounded)
        octave = sum(weights_of(job, unit) for unit in left) / 8
        near = self.step

        def size(x: float) -> float:
            return self._over * self._expected(job, left, near * 2**x)

        self.step = near * 2 ** search.crossing(size, room, octave, EXACT * max(room, 1.0))

    def _expected(self, job: Job, units: Sequence[Unit], step: float) -> float:
        with one_thread_each() as pool:
            return sum(pool.map(lambda unit: job.slice_bits(unit.name, unit.index, step), units)) / 8

    def _spent(self, rounded: Mapping[Unit, Plane]) -> float:
        return len(coded(rounded, self._coder)) - self._empty


def coded(rounded: Mapping[Unit, Plane], coder: str = "rans") -> bytes:
    """An artifact of units alone, each under its name and index."""
    entries = {
        f"{unit.name} {unit.index}": Entry("float32", plane.codes.shape, planes=(plane,))
        for unit, plane in rounded.items()
    }
    return artifact.encode(entries, {}, coder).data


def decoded(data: bytes) -> dict[Unit, Plane]:
    """What `coded` by rANS was made of."""
    units: dict[Unit, Plane] = {}
    for key, entry in artifact.decode(data)[0].items():
        name, _, index = key.rpartition(" ")
        assert entry.planes
        units[Unit(name, int(index))] = entry.planes[0]
    return units
