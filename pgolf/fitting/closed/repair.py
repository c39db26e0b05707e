"""Steps of everything that still floats, down the KL from the unquantized model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgolf.fitting.closed.student import Student
from pgolf.fitting.closed.units import Unit

BETAS = (0.9, 0.99)
WILD = 4.0  # times the KL of the open loop: steps that got there are no repair


class Diverged(Exception):
    """The steps made it worse, or the loss is not finite."""


@dataclass(frozen=True)
class Pace:
    """rate: Adam's first; it falls linearly to the share `last` of itself in every run of steps. batch: tokens a step.
    seed: of the order in which the text is read."""

    rate: float
    batch: int
    last: float = 0.1
    seed: int = 0


class Repair:
    """The moving weights of a student, fewer after every `freeze`."""

    def __init__(
        self,
        student: Student,
        moving: Mapping[Unit, int],
        text: Tensor,
        pace: Pace,
        worst: float,
        advance: Callable[[int, float], None],
        slopes: Callable[[Tensor, Iterable[str]], tuple[float, dict[str, Tensor]]] | None = None,
    ) -> None:
        """moving: unit -> how many units its tensor has. text: int64 [N, T], read again and again in another order.
        worst: the KL of the open loop. advance(tokens seen, KL of a step). slopes: in place of the student's own."""
        self._slopes = slopes or student.slopes
        self._pace, self._worst, self._advance, self._seen = pace, worst, advance, 0
        self._moving = {unit: _slice(student.weights[unit.name], count, unit) for unit, count in moving.items()}
        self._counts = dict(moving)
        self._rows = max(1, pace.batch // text.shape[1])
        self.step_tokens = self._rows * text.shape[1]
        self._example, self._text = text[: self._rows], _batches(text, self._rows, pace.seed)
        self._adam = torch.optim.Adam([*self._moving.values()], lr=pace.rate, betas=BETAS)

    @property
    def names(self) -> list[str]:
        """Of the tensors of which anything moves."""
        return list(dict.fromkeys(unit.name for unit in self._moving))

    def freeze(self, unit: Unit, value: Tensor) -> None:
        """Give a unit its rounded value [R, C] for good."""
        weight = self._moving.pop(unit)
        weight.copy_(value.reshape(weight.shape))
        self._adam.state.pop(weight, None)
        self._adam.param_groups[0]["params"] = [*self._moving.values()]

    def state(self) -> dict[str, Any]:
        """How far the steps are: what moves, Adam's sums for it, and the tokens seen."""
        sums = [
            [self._adam.state[weight][kind] for kind in ("step", "exp_avg", "exp_avg_sq")]
            if weight in self._adam.state
            else None
            for weight in self._moving.values()
        ]
        return {"seen": self._seen, "moving": [weight.contiguous() for weight in self._moving.values()], "adam": sums}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, once the same units are frozen."""
        for weight, value, sums in zip(self._moving.values(), state["moving"], state["adam"], strict=True):
            weight.copy_(value)
            if sums is not None:
                step, *rest = sums
                self._adam.state[weight] = {"step": step} | {
                    kind: part.to(weight.device) for kind, part in zip(("exp_avg", "exp_avg_sq"), rest, strict=True)
                }
        while self._seen < state["seen"]:
            self._seen += next(self._text).numel()

    def rehearse(self) -> None:
        """What a step computes, without any effect: to see how long it takes."""
        self._slopes(self._example, self.names)

    def run(self, steps: int) -> None:
        """Take so many steps. Raises Diverged. Inside `Student.at_work`."""
        names, seen = self.names, []
        for done in range(steps if names else 0):
            ids = next(self._text)
            kl, slopes = self._slopes(ids, names)
            if not math.isfinite(kl):
                raise Diverged
            for unit, weight in self._moving.items():
                slope = slopes.get(unit.name)
                weight.grad = None if slope is None else _slice(slope, self._counts[unit], unit)
            self._adam.param_groups[0]["lr"] = self._pace.rate * _fall(done / steps, self._pace.last)
            self._adam.step()
            seen.append(kl)
            self._seen += ids.numel()
            self._advance(self._seen, kl)
        self._adam.zero_grad()  # while units are rounded nobody needs them
        if seen and sum(seen[-4:]) / len(seen[-4:]) > WILD * self._worst:
            raise Diverged


def _slice(whole: Tensor, count: int, unit: Unit) -> Tensor:
    """A view of one of `count` equal parts along the first dimension."""
    return whole.reshape(count, -1)[unit.index]


def _fall(done: float, last: float) -> float:
    return 1 - (1 - last) * done


def _batches(text: Tensor, rows: int, seed: int) -> Iterator[Tensor]:
    """So many sequences at a time in random order, again and again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(text), generator=generator, device="cpu")
        for start in range(0, len(order), rows):
            yield text[order[start : start + rows]]
