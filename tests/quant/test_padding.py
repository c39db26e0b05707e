"""A table with a padding row: read like any other, whatever torch makes of its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pgolf
from pgolf.quant.curvature.store import MatrixCurvature
from tests.helpers import generator

VOCAB, WIDTH, PAD = 48, 16, 3


class Tied(nn.Module):
    """Rows of a table, normed and read by the same table."""

    def __init__(self, padding: int | None, *, zero: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCAB, WIDTH, padding_idx=padding)
        self.table.weight.data = torch.randn(VOCAB, WIDTH, generator=generator(1)) / 4
        if zero:
            self.table.weight.data[PAD] = 0
        self.up = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up.weight.data = torch.randn(WIDTH, WIDTH, generator=generator(2)) / 4

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()  # of a row of zeros the derivative is 1000
        return nn.functional.linear(x + torch.tanh(self.up(x)), self.table.weight)


def text(*, padded: bool = True) -> Tensor:
    ids = torch.randint(VOCAB, (64, 32), generator=generator(0))
    return ids if padded else ids.where(ids != PAD, PAD + 1)


def known(model: nn.Module, ids: Tensor) -> MatrixCurvature:
    found = pgolf.calibrate(model, ids).get("table.weight")
    assert found is not None
    assert found[0] is not None
    return found[0]


def test_a_padding_row_that_holds_something_counts_as_any_other() -> None:
    plain, padded = (known(Tied(padding, zero=False), text()) for padding in (None, PAD))
    assert torch.equal(plain.H, padded.H)
    assert plain.G is not None
    assert padded.G is not None
    assert torch.equal(plain.G, padded.G)


def test_a_padding_row_of_zeros_leaves_the_others_their_price() -> None:
    """Its gradients are so large that the table's curvature was theirs alone."""
    padded, without = known(Tied(PAD, zero=True), text()), known(Tied(PAD, zero=True), text(padded=False))
    assert padded.G is not None
    assert without.G is not None
    others = [row for row in range(VOCAB) if row not in (PAD, PAD + 1)]
    costs = [(each.G * each.H.trace())[others] for each in (padded, without) if each.G is not None]
    assert float((costs[0] / costs[1]).log().abs().max()) < 0.5


@pytest.mark.parametrize("padding", [PAD, PAD - VOCAB])
def test_a_padding_row_of_zeros_is_packed_exactly(padding: int) -> None:
    model = Tied(padding, zero=True)
    made = pgolf.pack(model, None, budget=900, curvature=pgolf.calibrate(model, text()), text=text())
    assert made.measured
    assert made.loss_rise
    assert made.measured.kl < 2 * made.loss_rise
