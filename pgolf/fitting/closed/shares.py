"""The gradient of a batch whose sequences several ranks share, summed to the same bits on all of them.

A rank that fails must not leave the others waiting in a sum. So all sums of a run have one size, its failure is a number in
the next one, and after the last step there is one more, in which all tell that they came through.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from pgolf.fitting.closed.student import Student

PIECE = 1 << 26  # numbers that are summed in one go
HEAD = 2  # the KL, and how many ranks failed


class Halted(Exception):
    """Another rank failed."""


class Shares:
    """group: of those who share, of torch.distributed. One float32 buffer holds what is summed: the KL, failures, for each
    name whether it has a gradient, and the gradients."""

    def __init__(self, student: Student, group: Any) -> None:
        self._student, self._group = student, group
        self._number, self._size = distributed.get_rank(group), distributed.get_world_size(group)
        self._names: list[str] = []
        self._buffer = torch.zeros(0, dtype=torch.float32, device=student.device)

    def expect(self, names: Sequence[str]) -> None:
        """The next sums are of these."""
        self._names = [*names]
        size = HEAD + len(names) + sum(self._student.weights[name].numel() for name in names)
        self._buffer = self._buffer[:0].clone()
        self._buffer = self._buffer.new_zeros(size)

    def slopes(self, ids: Tensor, names: Iterable[str]) -> tuple[float, dict[str, Tensor]]:
        """As `Student.slopes`, of `names` that are expected. Raises what that raises, before any sum; Halted where another rank
        failed.

        Gradients are views of the buffer, good until the next sum.
        """
        mine = ids[self._number :: self._size]
        found = self._student.slopes(mine, names) if len(mine) else None
        self._buffer.zero_()
        if found is not None:
            share, (kl, slopes) = len(mine) / len(ids), found
            self._buffer[0] = share * kl
            for place, (name, part) in enumerate(self._parts()):
                if name in slopes:
                    self._buffer[HEAD + place] = 1.0
                    torch.mul(slopes[name].reshape(-1), share, out=part)
            del found, slopes
        self._sum()
        head = self._buffer[: HEAD + len(self._names)].tolist()
        there = [count > 0 for count in head[HEAD:]]
        return head[0], {
            name: part.view(self._student.weights[name].shape)
            for (name, part), known in zip(self._parts(), there, strict=True)
            if known
        }

    def close(self, *, failed: bool = False) -> None:
        """The last sum of a run: here all went well, or not. Raises Halted where it did on no other rank's side."""
        self._buffer.zero_()
        self._buffer[1] = float(failed)
        if failed:
            self._add_up()
        else:
            self._sum()

    def _sum(self) -> None:
        self._add_up()
        if self._buffer[1] > 0:
            raise Halted

    def _add_up(self) -> None:
        for part in torch.split(self._buffer, PIECE):
            distributed.all_reduce(part, group=self._group)

    def _parts(self) -> list[tuple[str, Tensor]]:
        """Each name's part of the buffer."""
        made, start = [], HEAD + len(self._names)
        for name in self._names:
            end = start + self._student.weights[name].numel()
            made.append((name, self._buffer[start:end]))
            start = end
        return made
