"""Whether a larger or a smaller model would serve better in the same bytes: what its loss would have to be for that.

A model of FACTOR times the weights has 1/FACTOR of the bits for each. What that costs is foreseen on the model at hand in
1/FACTOR of the bytes, as if the other's weights were as sensitive to rounding; what it gains in training only training tells.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pgolf.errors import UsageError
from pgolf.fitting.estimate import Estimate, estimate
from pgolf.fitting.goal import goal_of
from pgolf.fitting.inputs import as_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pgolf.common.sizes import Size
    from pgolf.fitting.inputs import Model
    from pgolf.quant.curvature.store import Curvature
    from pgolf.quant.settings import Settings

FACTOR = 1.25  # of the weights


@dataclass(frozen=True)
class Other:
    """A model of another size in the same bytes.

    weights: about; bits_per_weight: of the quantized ones; loss_rise: foreseen, nats per token, None without curvature.
    break_even: by how much its loss before packing must be lower for it to be the better one packed; negative: by how much it
    may be higher. fits: whether it fits at all.
    """

    weights: int
    bits_per_weight: float
    loss_rise: float | None
    break_even: float | None
    fits: bool


@dataclass(frozen=True)
class Advice:
    """The model as it is, in its bytes, beside a larger and a smaller one."""

    weights: int
    here: Estimate
    larger: Other
    smaller: Other

    def to_json(self) -> dict[str, Any]:
        """Those of `Estimate`, with "advice"."""
        told = {"weights": self.weights, "larger": asdict(self.larger), "smaller": asdict(self.smaller)}
        return self.here.to_json() | {"advice": told}


def advise(
    model: Model,
    *,
    budget: Size | None,
    curvature: Curvature | None = None,
    method: str | None = None,
    rules: str | Sequence[str] = (),
    settings: Settings | None = None,
    code: str | Path | Sequence[str | Path] = (),
    state: str | None = None,
    drop: str | Sequence[str] = (),
) -> Advice:
    """`estimate` with the same arguments, and what FACTOR times more and fewer weights would get in its budget.

    Raises as `estimate` does, and UsageError without a budget: bytes that do not end need no choice.
    """
    if budget is None:
        raise UsageError("--advise needs a --budget: the best size is one for so many bytes")
    source, goal = as_checkpoint(model, state), goal_of(budget, code=code)
    how: dict[str, Any] = {"curvature": curvature, "method": method, "rules": rules, "settings": settings, "drop": drop}
    here = estimate(source, budget=budget, code=code, **how)
    weights = sum(tensor.numel() for tensor in source.tensors.values())

    def other(factor: float) -> Other:
        found = estimate(source, budget=int((goal.room() or 0) / factor), **how)
        known = found.loss_rise is not None and here.loss_rise is not None
        margin = (found.loss_rise or 0.0) - (here.loss_rise or 0.0) if known else None
        return Other(round(weights * factor), found.bits_per_weight, found.loss_rise, margin, bool(found.fits))

    return Advice(weights, here, other(FACTOR), other(1 / FACTOR))
