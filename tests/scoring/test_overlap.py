"""The device is given the next batch before the host reads this one's losses; the figures are the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pgolf.errors import BudgetError
from pgolf.models.logits import logits_of
from pgolf.scoring import bpb, evaluation, overlap
from pgolf.scoring.static import StaticLosses
from pgolf.train.loop.demo_model import DEMO
from pgolf.train.model.gpt import GPT, PRESETS
from tests.elsewhere import gpu
from tests.helpers import toy_module, toy_state
from tests.kernels.places import HAS_GPU

TOKENS = np.random.default_rng(0).integers(0, 64, 150).astype(np.uint16)


def test_each_is_read_once_the_next_is_made():
    seen = []

    def made():
        for number in range(3):
            seen.append(f"made {number}")
            yield number

    for number in overlap.one_behind(made()):
        seen.append(f"read {number}")
    assert seen == ["made 0", "made 1", "read 0", "made 2", "read 1", "read 2"]
    assert list(overlap.one_behind([])) == []


@pytest.mark.skipif(HAS_GPU, reason="a GPU is there: it shows the same by itself")
def test_the_host_waits_for_losses_alone_and_a_batch_late(monkeypatch: pytest.MonkeyPatch):
    launched, read = [], []
    plain = bpb.score_windows(logits_of(toy_module(toy_state())), TOKENS, seq_len=16, batch_size=4)
    with gpu() as there:
        logits = logits_of(toy_module(toy_state()).to("cuda"))
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
        fast = StaticLosses(logits.model, logits, seq_len=16, batch_size=4)
        fast(torch.zeros(4, 17, dtype=torch.int64).to("cuda"), 0)

        def losses(ids, skip):
            launched.append(len(read))
            there.waits.clear()
            nats = fast(ids, skip)
            assert ids.shape[1] < 17 or not there.waits
            return nats

        mine = bpb.score_windows(
            logits, TOKENS, seq_len=16, batch_size=4, losses=losses, progress=lambda *_: read.append(None)
        )
    assert launched == [0, 0, 1, 2]
    np.testing.assert_allclose(mine, plain, atol=2e-6)


@pytest.mark.parametrize("name", ["demo", *PRESETS])
def test_our_models_are_compiled_whole(name: str):
    config = DEMO.model if name == "demo" else PRESETS[name]
    with torch.device("meta"):
        model = GPT(config).eval()
        ids = torch.zeros(2, 32, dtype=torch.int64)
    with torch.no_grad():
        seen = torch._dynamo.explain(model.forward_hidden)(ids)
    torch._dynamo.reset()
    assert (seen.graph_count, seen.graph_break_count) == (1, 0), seen.break_reasons


def test_a_limit_of_time_ends_what_takes_longer(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 5.0, 11.0])
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: next(clock))
    seen = []
    advance = evaluation.within(10.0, lambda *step: seen.append(step))
    advance(400, 4000)
    with pytest.raises(
        BudgetError, match="longer than 10 s: 1,000 of 4,000 tokens took 11 s, all of them would take about 44 s"
    ):
        advance(1000, 4000)
    assert seen == [(400, 4000)]
