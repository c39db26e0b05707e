"""In which order a model's forward pass comes to its matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pgolf.models.logits import Logits, device_of
from pgolf.quant.curvature.trace import Rectangle, Tracer


class _Order:
    """The tracer's sink: notes the first use of every slice, and of what it cannot follow."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, int | None], None] = {}

    def product(self, rectangles: Sequence[Rectangle], x: Tensor, y: Tensor, flat: Callable[[Tensor], Tensor]) -> None:
        """See trace.Sink."""
        self.seen |= {(each.name, each.index): None for each in rectangles}

    def lookup(self, rectangle: Rectangle, ids: Tensor, y: Tensor, without: int | None = None) -> None:
        """See trace.Sink."""
        self.seen[rectangle.name, rectangle.index] = None

    def unknown(self, name: str, function: str) -> None:
        """See trace.Sink."""
        self.seen[name, None] = None


def in_order(model: nn.Module, run: Logits, ids: Tensor) -> list[tuple[str, int | None]]:
    """(parameter, slice) by first use in a forward pass over ids [B, T]; slice None: used in a way that is not followed."""
    order = _Order()
    ids = run.prepare(ids.to(device_of(model)))
    with torch.no_grad(), Tracer(dict(model.named_parameters()), order):
        run(ids)
    return list(order.seen)
