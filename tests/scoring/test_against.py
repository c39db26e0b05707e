"""Changed models against the unquantized one, token by token; and the bootstrap of their difference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pgolf.errors import DataError, ModelError
from pgolf.models.logits import logits_of
from pgolf.scoring import bootstrap, divergence
from pgolf.scoring.against import difference, figures
from pgolf.scoring.bpb import score_windows
from pgolf.scoring.divergence import compared
from tests.helpers import Counting, generator

VOCAB = 13


class Shifted(nn.Module):
    """`Counting` with some noise on its table."""

    def __init__(self, noise: float, vocab: int = VOCAB) -> None:
        super().__init__()
        self.inner = Counting(vocab)
        with torch.no_grad():
            self.inner.table += noise * torch.randn(vocab, vocab, generator=generator(7))

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids)


def tokens(count: int = 401) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, count).astype(np.uint16)


STARTS = np.arange(0, 401, 16)
HOW = {"seq_len": 32, "starts": STARTS}


@pytest.mark.parametrize("stride", [None, 8])
@pytest.mark.parametrize("within", [False, True])
def test_every_target_has_the_figures_of_its_window(stride: int | None, within: bool) -> None:
    reference, changed = logits_of(Counting(VOCAB)), logits_of(Shifted(0.3))
    (found,) = figures(reference, [changed], tokens(), **HOW, stride=stride, within_documents=within)
    starts = STARTS if within else None
    for logits, mine in ((reference, found.before), (changed, found.after)):
        assert mine == pytest.approx(score_windows(logits, tokens(), seq_len=32, stride=stride, starts=starts))
    made = found.divergence()
    assert made.tokens == 400
    assert made.rise == pytest.approx(float(found.after.mean() - found.before.mean()), abs=1e-6)


def test_the_kl_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    found = compared(p.log()[None], q.log()[None] + 3, torch.tensor([[1]]))
    assert float(found.kl) == pytest.approx(0.25 * np.log(2))
    assert not bool(found.same)
    assert (float(found.before), float(found.after)) == pytest.approx((np.log(4), np.log(2)))


def test_parts_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = torch.randn(3, 5, 11, generator=generator()), torch.randn(3, 5, 11, generator=generator(1)).half()
    targets = torch.randint(11, (3, 5), generator=generator(2))
    whole = compared(p, q, targets)
    monkeypatch.setattr(divergence, "PART", 22)
    for one, other in zip(whole, compared(p, q, targets), strict=True):
        assert torch.equal(one, other)


def test_a_model_is_nowhere_from_itself() -> None:
    (found,) = figures(logits_of(Counting(VOCAB)), [logits_of(Counting(VOCAB))], tokens(), **HOW)
    made = found.divergence()
    assert (made.kl, made.rise, made.same_top) == (pytest.approx(0, abs=1e-7), 0, 1)


def test_two_are_compared_over_documents_or_windows() -> None:
    reference, near, far = (logits_of(model) for model in (Counting(VOCAB), Shifted(0.1), Shifted(0.2)))
    a, b = figures(reference, [near, far], tokens(), **HOW)
    change = difference(a, b)
    assert (a.unit, change.units) == ("documents", 25)
    assert change.value == pytest.approx(b.divergence().kl - a.divergence().kl, rel=1e-5)
    assert 0 < change.low < change.value < change.high
    assert change.p == pytest.approx(2 / (change.draws + 1))
    assert difference(a, a).p == 1
    (alone,) = figures(reference, [near], tokens(), seq_len=32, starts=STARTS[:2])
    assert (alone.unit, len(alone.cuts)) == ("windows", 13)
    assert alone.kl.mean() == pytest.approx(a.kl.mean())


def test_the_bootstrap_agrees_with_linearization() -> None:
    random = np.random.default_rng(1)
    counts = random.integers(5, 200, 300)
    first = counts * random.normal(1.0, 0.2, 300)
    second = first + counts * random.normal(0.1, 0.3, 300)
    change = bootstrap.difference(first, second, counts)
    assert change.standard_error == pytest.approx(bootstrap.standard_error(second - first, counts), rel=0.05)
    assert change.low == pytest.approx(change.value - 1.96 * change.standard_error, abs=0.1 * change.standard_error)
    assert change == bootstrap.difference(first, second, counts)
    assert bootstrap.difference(first[:1], second[:1], counts[:1]).p is None


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ModelError, match="models of 13 and 17 tokens"):
        figures(logits_of(Counting(VOCAB)), [logits_of(Shifted(0.1, 17))], tokens(), **HOW)
    with pytest.raises(DataError, match="vocabulary"):
        figures(logits_of(Counting(5)), [logits_of(Counting(5))], tokens(), **HOW)
    broken = Shifted(0.1)
    with torch.no_grad():
        broken.inner.table[3] = float("nan")
    with pytest.raises(ModelError, match="not finite between tokens 0 and"):
        figures(logits_of(Counting(VOCAB)), [logits_of(broken)], tokens(), **HOW)
