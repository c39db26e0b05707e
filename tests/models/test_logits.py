"""Logits of unknown models: what is accepted, and what is said of the rest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from pgolf.errors import ModelError
from pgolf.models.logits import first_bad_module, logits_of, original, undisturbed

IDS = torch.tensor([[0, 1, 2], [2, 1, 0]])


class Model(nn.Module):
    def __init__(self, wrap: Any = lambda z: z) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 5)
        self.wrap = wrap

    def forward(self, ids: Tensor) -> Any:
        return self.wrap(self.table(ids))

    def other(self, ids: Tensor) -> Tensor:
        return 2 * self.table(ids)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: z,
        lambda z: (z, None),
        lambda z: (z.sum(), z),
        lambda z: {"loss": 1, "logits": z},
        lambda z: SimpleNamespace(logits=z, loss=None),
        lambda z: z.flatten(0, 1),
    ],
)
def test_forms_of_logits(wrap: Any) -> None:
    model = Model(wrap)
    assert torch.equal(logits_of(model)(IDS), model.table(IDS))


def test_which_method_is_called() -> None:
    model = Model()
    assert torch.equal(logits_of(model, "other")(IDS), 2 * model.table(IDS))
    assert torch.equal(logits_of(model, lambda ids: 3 * model.table(ids))(IDS), 3 * model.table(IDS))
    model.forward_logits = model.other
    assert torch.equal(logits_of(model)(IDS), 2 * model.table(IDS))
    model = Model()
    model.logits = nn.Linear(5, 5)  # a head, not a method
    assert torch.equal(logits_of(model)(IDS), model.table(IDS))


@pytest.mark.parametrize("wrap", [lambda z: z.sum(), lambda z: z[:, -1:], lambda z: None, lambda z: z.argmax(-1)])
def test_no_logits(wrap: Any) -> None:
    with pytest.raises(ModelError, match="logits="):
        logits_of(Model(wrap))(IDS)


def test_no_such_method() -> None:
    with pytest.raises(ModelError, match="nonsense"):
        logits_of(Model(), "nonsense")


def test_wrappers_are_opened() -> None:
    inner = Model()
    assert original(nn.DataParallel(inner)) is inner
    assert original(inner) is inner


def test_undisturbed_restores_even_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), Model())
    model[1].eval()
    model[1].table.weight.requires_grad_(False)
    with undisturbed(model, gradients=True):
        assert not model.training
        assert model[1].table.weight.requires_grad
    with pytest.raises(ZeroDivisionError), undisturbed(model, gradients=True):
        raise ZeroDivisionError
    assert [model.training, model[0].training, model[1].training] == [True, True, False]
    assert not model[1].table.weight.requires_grad


def test_compiled_functions_run_as_written() -> None:
    calls = []

    def backend(graph: Any, example: Any) -> Any:
        calls.append(graph)
        return graph.forward

    model = Model(torch.compile(lambda z: z + 1, backend=backend))
    with undisturbed(model, gradients=False):
        model(IDS)
    assert calls == []


def test_first_bad_module() -> None:
    model = nn.Sequential(nn.Embedding(5, 5), nn.Sequential(nn.Identity(), nn.LayerNorm(5)), nn.Linear(5, 5))
    assert first_bad_module(model, logits_of(model), IDS) == ""
    model[1][1].bias.data[2] = torch.inf
    assert first_bad_module(model, logits_of(model), IDS) == "1.1"
    assert not any(m._forward_hooks for m in model.modules())


def test_undisturbed_twice_at_once() -> None:
    plain, model = CheckpointFunction.apply, Model()
    with undisturbed(model, gradients=True):
        outer = CheckpointFunction.apply
        with undisturbed(model, gradients=False):
            assert CheckpointFunction.apply is not plain
        assert CheckpointFunction.apply is outer
    assert CheckpointFunction.apply == plain


class Merging(nn.Linear):
    """Adapters that are added to the weights for inference, and taken out again for training."""

    merged = False

    def train(self, mode: bool = True) -> nn.Module:
        if mode is self.merged:
            self.weight.data += -1.0 if mode else 1.0
            self.merged = not mode
        return super().train(mode)


def test_a_class_that_changes_its_weights_for_inference_is_left_alone() -> None:
    model = Merging(3, 3).train()
    before = model.weight.detach().clone()
    with undisturbed(model, gradients=True):
        assert not model.training
        assert torch.equal(model.weight, before)
    assert model.training
    assert not model.merged
    assert torch.equal(model.weight, before)
