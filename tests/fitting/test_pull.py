"""The slope of a KL, by parts, is the one that autograd finds."""

import pytest
import torch

from pgolf.fitting.closed import pull
from tests.helpers import generator


@pytest.mark.parametrize("part", [1, 100, 1 << 22])
def test_it_is_autograds(monkeypatch, part):
    monkeypatch.setattr(pull, "PART", part)
    teacher = 3 * torch.randn(2, 7, 33, generator=generator(0))
    student = (teacher + 0.1 * torch.randn(2, 7, 33, generator=generator(1))).requires_grad_()
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    loss = (p.exp() * (p - q)).sum() / 14
    kl, slope = pull.pull(teacher.clone(), student)
    assert kl / 14 == pytest.approx(float(loss.detach()), rel=1e-5)
    assert torch.allclose(slope / 14, torch.autograd.grad(loss, student)[0], rtol=1e-4, atol=1e-8)
    assert not slope.requires_grad


def test_bfloat16_logits_and_strides_of_their_own():
    teacher, student = torch.randn(2, 33, 7, generator=generator(2)).bfloat16().mT.split(1)
    kl, slope = pull.pull(teacher.clone(), student)
    wide, exact = pull.pull(teacher.float(), student.float())
    assert slope.dtype == torch.bfloat16
    assert kl == wide
    assert torch.equal(slope, exact.bfloat16())


def test_a_model_that_is_its_teacher_has_no_slope():
    logits = torch.randn(1, 5, 11, generator=generator(3))
    kl, slope = pull.pull(logits.clone(), logits)
    assert kl == 0.0
    assert not slope.any()


def test_what_is_not_finite_shows():
    logits = torch.full((1, 2, 3), float("nan"))
    assert not pull.pull(logits, logits)[0] < float("inf")


def test_what_cannot_be_costs_nothing():
    teacher, student = torch.randn(2, 4, 9, generator=generator(4)).split(1)
    kl, slope = pull.pull(teacher.clone(), student)
    never = torch.full((1, 4, 2), float("-inf"))
    wide, longer = pull.pull(torch.cat([teacher, never], -1), torch.cat([student, never], -1))
    assert wide == pytest.approx(kl, rel=1e-6)
    assert torch.allclose(longer[..., :9], slope, atol=1e-7)
    assert not longer[..., 9:].any()
