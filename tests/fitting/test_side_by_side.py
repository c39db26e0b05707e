"""On a device, matrices of one kind are rounded in one go, to what each becomes by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pgolf
from pgolf.fitting import side_by_side
from pgolf.fitting.inputs import job_of
from pgolf.quant.rounding import diagonals
from pgolf.quant.rounding.feedback import round_matrix
from tests.elsewhere import gpu
from tests.helpers import generator
from tests.kernels.places import HAS_GPU

pytestmark = pytest.mark.skipif(HAS_GPU, reason="a GPU is there: it shows the same by itself")
IDS = torch.randint(64, (8, 32), generator=generator(1))


class Deep(nn.Module):
    """Three layers of one shape, a bank of two of that shape, one of another, and a table."""

    def __init__(self) -> None:
        super().__init__()
        g = generator(0)
        self.table = nn.Embedding(64, 48, _weight=torch.randn(64, 48, generator=g))
        self.layers = nn.ParameterList([torch.randn(48, 48, generator=g) * 0.1 for _ in range(3)])
        self.bank = nn.Parameter(torch.randn(2, 48, 48, generator=g) * 0.1)
        self.up = nn.Parameter(torch.randn(96, 48, generator=g) * 0.1)

    def forward(self, ids):
        x = self.table(ids)
        for weight in (*self.layers, *self.bank):
            x = x + torch.tanh(x @ weight.T)
        return (x @ self.up.T)[..., :64]


def rounded(device: str, monkeypatch: pytest.MonkeyPatch, most: int = side_by_side.MOST):
    """(entries of every tensor, how many matrices were rounded in each go)."""
    seen = []

    def on_the_cpu(asked, device):
        assert len({one.kind for one in asked}) == 1
        seen.append(len(asked))
        return np.stack([round_matrix(*one) for one in asked])

    monkeypatch.setattr(diagonals, "round_together", on_the_cpu)
    monkeypatch.setattr(diagonals, "HAS_KERNEL", True)
    monkeypatch.setattr(side_by_side, "MOST", most)
    with gpu():
        model = Deep().to(device)
        job = job_of(model, pgolf.calibrate(model, [IDS]), search=False, rules=["*=auto"])
        return job.rounded(job.leaders, 0.25), sorted(seen)


@pytest.mark.parametrize(("most", "goes"), [(1 << 25, [1, 1, 5]), (2 * 48 * 48, [1, 1, 1, 2, 2]), (1, [1] * 7)])
def test_equal_matrices_go_together(most: int, goes: list[int], monkeypatch: pytest.MonkeyPatch):
    there, seen = rounded("cuda", monkeypatch, most)
    here, none = rounded("cpu", monkeypatch)
    assert (seen, none) == (goes, [])
    assert there.keys() == here.keys()
    for name, entry in there.items():
        for mine, wanted in zip(entry.planes, here[name].planes, strict=True):
            np.testing.assert_allclose(mine.reconstruct(), wanted.reconstruct(), atol=0.05)
            assert mine.codes.dtype == wanted.codes.dtype
