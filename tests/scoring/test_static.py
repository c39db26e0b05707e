"""The fast losses are the plain ones: filled-up batches, short windows, our model and any other."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from pgolf.models.logits import logits_of
from pgolf.scoring import bpb
from pgolf.scoring.evaluation import windows_that_fit
from pgolf.scoring.static import StaticLosses, to_device
from pgolf.train.model.gpt import GPT, GPTConfig
from tests.helpers import generator, toy_module, toy_state

TINY = GPTConfig(vocab_size=64, layers=2, dim=16, heads=2, kv_heads=1, mlp_mult=2, rope_dims=4)


def tokens(length=150):
    return np.random.default_rng(0).integers(0, 64, length).astype(np.uint16)


def shaken():
    """Our model with weights that matter everywhere: a fresh one's branches are zero."""
    model, g = GPT(TINY), generator()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
    return model


@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_static_losses_are_the_plain_ones(kind, stride, monkeypatch):
    model = shaken() if kind == "ours" else toy_module(toy_state())
    logits = logits_of(model)
    plain = bpb.score_windows(logits, tokens(), seq_len=16, stride=stride)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    fast = StaticLosses(model, logits, seq_len=16, batch_size=4)
    mine = bpb.score_windows(logits, tokens(), seq_len=16, stride=stride, batch_size=4, losses=fast)
    np.testing.assert_allclose(mine, plain, atol=2e-6)
    assert fast.compile_seconds > 0


class Mixed(torch.nn.Module):
    """Logits in a dict, beside others' shapes."""

    def __init__(self):
        super().__init__()
        self.inner = toy_module(toy_state())

    def forward(self, ids):
        return {"logits": self.inner.forward_logits(ids), "cache": ids.float()}


@pytest.mark.parametrize("make", [lambda: toy_module(toy_state()), Mixed, shaken])
def test_a_model_is_compiled_whole(make):
    """A check of ids inside would break the graph, and wait for the device in every batch."""
    model, ids = make(), torch.arange(32).view(2, 16)
    logits = logits_of(model)
    with torch.no_grad():
        whole = torch.compile(logits.unchecked(ids), backend="eager", fullgraph=True, dynamic=False)
        torch.testing.assert_close(whole(ids), logits(ids))
    torch._dynamo.reset()


def test_a_model_that_gives_only_its_loss_is_watched_as_ever():
    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = toy_module(toy_state())

        def forward(self, ids, targets):
            return torch.nn.functional.cross_entropy(self.inner.forward_logits(ids).flatten(0, 1), targets.flatten())

    logits = logits_of(Loss())
    assert logits.unchecked(torch.arange(32).view(2, 16)) is logits


@pytest.mark.parametrize(("free", "windows"), [(0, 1), (1 << 20, 4), (1 << 40, 32)])
def test_batches_are_as_large_as_memory_allows(free, windows, monkeypatch):
    """Of 1,024 tokens of a vocabulary of 16; a model whose head is apart never has all of its logits."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 1 << 40))
    model = nn.Embedding(16, 16)
    assert windows_that_fit(model, 1024) == windows
    assert windows_that_fit(GPT(TINY), 1024) == 32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_compiled_on_a_gpu():
    model = to_device(GPT(TINY), torch.device("cuda"))
    logits = logits_of(model)
    plain = bpb.score_windows(logits, tokens(), seq_len=16, device="cuda")
    fast = StaticLosses(model, logits, seq_len=16, batch_size=4)
    mine = bpb.score_windows(logits, tokens(), seq_len=16, batch_size=4, losses=fast, device="cuda")
    np.testing.assert_allclose(mine, plain, atol=0.05)  # bfloat16 logits
    assert json.dumps(fast.compile_seconds)
