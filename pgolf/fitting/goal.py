"""What a pack is to meet: bytes, bits a weight, or how far its model may move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pgolf.code.weigh import counted
from pgolf.common.sizes import Size, parse_size, show_size
from pgolf.errors import BudgetError, UsageError
from pgolf.fitting.plan import listed


@dataclass(frozen=True)
class Goal:
    """At most one of: `budget` bytes for artifact and code; `rise`, the predicted rise of the loss in nats per token; `bits`
    a weight of the quantized tensors, see `Trial.bits_per_weight`; `max_kl` or `max_rise`, the KL from the unquantized
    model or the rise of its loss, nats per token, as measured on text held back.

    code_bytes: script -> what it counts.
    """

    budget: int | None = None
    rise: float | None = None
    bits: float | None = None
    max_kl: float | None = None
    max_rise: float | None = None
    code_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def moves(self) -> bool:
        """Whether the knob has to move for it; without a goal the settings are taken as they are."""
        return any(value is not None for value in (self.budget, self.rise, self.bits)) or self.measured

    @property
    def measured(self) -> bool:
        """Whether every trial has to be run in its model to know whether it meets the goal."""
        return self.max_kl is not None or self.max_rise is not None

    def room(self) -> int | None:
        """Bytes that the budget leaves for the artifact, None without one. Raises BudgetError where that is nothing."""
        if self.budget is None:
            return None
        code = sum(self.code_bytes.values())
        if code >= self.budget:
            raise BudgetError(f"the code alone counts {show_size(code)}, the budget is {show_size(self.budget)}")
        return self.budget - code


def goal_of(
    budget: Size | None = None,
    target_rise: float | None = None,
    code: str | Path | Sequence[str | Path] = (),
    *,
    bits: float | None = None,
    max_kl: float | None = None,
    max_rise: float | None = None,
) -> Goal:
    """The goal that a user names. Raises UsageError for two of them, and for what is no size or no positive number."""
    limits = {"a target rise": target_rise, "bits a weight": bits, "a largest KL": max_kl, "a largest rise": max_rise}
    given = ["a budget"] * (budget is not None) + [name for name, value in limits.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"give {' or '.join(given)}, not {'both' if len(given) == 2 else 'all'}")
    for name, value in limits.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{name} of {value} cannot be reached: give a positive number")
    limit = None if budget is None else parse_size(budget)
    return Goal(limit, target_rise, bits, max_kl, max_rise, counted(listed(code)))
