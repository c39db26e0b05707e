"""Labels are drawn as the softmax says, and their gradients are those of the cross-entropy, block by block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pgolf.quant.curvature import softmax


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_labels_are_drawn_as_often_as_their_probability_says() -> None:
    p = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.15, 0.05, 0.0])
    counts = torch.bincount(softmax.drawn(p.expand(100_000, -1), generator()), minlength=7) / 100_000
    assert torch.allclose(counts, p, atol=0.006)
    assert (counts[p == 0] == 0).all()


def test_an_impossible_last_token_is_not_drawn() -> None:
    p = torch.zeros(1000, 50_000)
    p[:, :3] = torch.tensor([0.1, 0.2, 0.3])  # does not sum to one: rounding never does
    assert int(softmax.drawn(p, generator()).max()) < 3


@pytest.mark.parametrize("block", [1, 40, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_that_of_the_cross_entropy(
    block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "BLOCK", block)
    logits = (3 * torch.randn(11, 13, generator=generator())).to(dtype).requires_grad_()
    slope = softmax.drawn_gradient(logits.detach(), generator())
    labels = (slope.float() - logits.detach().float().softmax(-1)).argmin(-1)
    F.cross_entropy(logits.float(), labels, reduction="sum").backward()
    assert slope.dtype == dtype
    torch.testing.assert_close(slope, logits.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_where_there_is_no_softmax(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "BLOCK", block)
    logits = torch.randn(5, 7)
    logits[2, 1:] = -torch.inf
    assert softmax.all_finite(logits)
    for bad in (torch.nan, torch.inf):
        logits[4, 0] = bad
        assert not softmax.all_finite(logits)
    assert not softmax.all_finite(torch.full((2, 3), -torch.inf))
