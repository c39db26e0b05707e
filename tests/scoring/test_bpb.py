"""Every target is scored exactly once, on the device of the model and in eval mode."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pgolf.errors import DataError, ModelError, UsageError
from pgolf.models.logits import Logits, logits_of
from pgolf.scoring.bpb import evaluate, score_windows
from tests.helpers import Counting, losses_that_note_devices

VOCAB = 13


def naive_nats(model: nn.Module, tokens: np.ndarray, seq_len: int, stride: int) -> float:
    """One window and one target at a time, straight from the rule in the contest's words."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    total, scored, nats = len(tokens) - 1, 0, 0.0
    for start in range(0, len(tokens), stride):
        stop = min(start + seq_len, total)
        logits = model(ids[None, start:stop])[0].double()
        for target in range(scored, stop):
            nats -= F.log_softmax(logits[target - start], 0)[ids[target + 1]].item()
        scored = stop
        if stop == total:
            return nats
    raise AssertionError("unreachable")


def stream(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, VOCAB, length).astype(np.uint16)


@pytest.mark.parametrize("stride", [None, 1, 5, 16])
@pytest.mark.parametrize("length", [2, 16, 17, 18, 33, 100])
def test_evaluate_equals_the_naive_rule(length: int, stride: int | None):
    model, tokens = Counting(), stream(length)
    byte_counts = np.arange(length)
    result = evaluate(model, tokens, byte_counts, seq_len=16, stride=stride, batch_size=3)
    with torch.no_grad():
        nats = naive_nats(model, tokens, 16, stride or 16)
    assert result.tokens == length - 1
    assert result.bytes == byte_counts[1:].sum()
    assert result.loss == pytest.approx(nats / (length - 1), abs=1e-6)
    assert result.bpb == pytest.approx(nats / math.log(2) / result.bytes, abs=1e-6)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), stride=st.integers(1, 16))
@settings(max_examples=25)
def test_documents_are_scored_as_if_each_stood_alone(lengths: list[int], stride: int):
    """A document's targets are its tokens after the first and the start of the next one."""
    model, tokens = Counting(), stream(sum(lengths) + 1)
    starts = np.cumsum([0, *lengths[:-1]])
    together = score_windows(model, tokens, seq_len=16, stride=stride, starts=starts, batch_size=3)
    for start, length in zip(starts, lengths, strict=True):
        alone = score_windows(model, tokens[start : start + length + 1], seq_len=16, stride=stride)
        np.testing.assert_allclose(together[start : start + length], alone, atol=1e-6)


def test_windows_of_one_shape_are_scored_together():
    """Eight documents, two lengths: two forward passes, and one that asks for the vocabulary."""
    shapes, model = [], Counting()
    tokens, starts = stream(8 * 15 + 1), np.cumsum([0, 10, 20, 10, 20, 10, 20, 10])

    def logits(ids: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(ids.shape))
        return model(ids)

    score_windows(logits, tokens, seq_len=32, starts=starts)
    assert shapes[1:] == [(4, 20), (4, 10)]


@pytest.mark.gpu
def test_evaluate_on_the_device_of_the_model():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    tokens, ones = stream(1000), np.ones(1000)
    cpu = evaluate(Counting(), tokens, ones, seq_len=16, stride=4)
    cuda = evaluate(Counting().cuda(), tokens, ones, seq_len=16, stride=4)
    assert cuda.loss == pytest.approx(cpu.loss, abs=1e-5)


def test_max_tokens_scores_a_prefix():
    model, tokens = Counting(), stream(100)
    ones = np.ones(100, np.uint16)
    prefix = evaluate(model, tokens[:41], ones[:41], seq_len=16, stride=4)
    assert evaluate(model, tokens, ones, seq_len=16, stride=4, max_tokens=40).bpb == prefix.bpb
    assert prefix.tokens == prefix.bytes == 40


def test_progress_reaches_the_total_and_the_mode_is_restored():
    model, seen = Counting().train(), []
    evaluate(model, stream(100), np.ones(100), seq_len=16, batch_size=2, progress=lambda *step: seen.append(step))
    assert [done for done, _ in seen] == [32, 64, 96, 99]
    assert {total for _, total in seen} == {99}
    assert model.training


BEHIND = {"module": lambda model: model, "method": lambda model: model.forward, "logits_of": logits_of}


@pytest.mark.parametrize("behind", BEHIND)
def test_modules_are_scored_in_eval_mode_and_left_as_they_were(behind: str):
    """However its logits are given: a part that somebody froze in eval mode is not woken by it either."""
    model = nn.Sequential(Counting(), nn.Dropout(0.9), nn.Dropout(0.5).eval())
    result = evaluate(BEHIND[behind](model), stream(50), np.ones(50), seq_len=16)
    assert result.loss == evaluate(model[0], stream(50), np.ones(50), seq_len=16).loss
    assert [module.training for module in model.modules()] == [True, True, True, False]


@pytest.mark.parametrize("behind", BEHIND)
def test_ids_are_put_where_the_model_is(behind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Logits, "__call__", lambda self, ids: self.model(ids))  # its checks read values, meta has none
    for device in ("cpu", "meta"):
        seen: list[str] = []
        score_windows(
            BEHIND[behind](Counting().to(device)), stream(50), seq_len=16, losses=losses_that_note_devices(seen)
        )
        assert set(seen) == {device}


def test_bad_input_of_evaluate():
    model, tokens, ones = Counting(), stream(50), np.ones(50, np.uint16)
    with pytest.raises(DataError, match="token 13 at position 7 is beyond the model's vocabulary of 13"):
        evaluate(model, np.where(np.arange(50) == 7, VOCAB, tokens), ones, seq_len=16)
    with pytest.raises(DataError, match="49 byte counts for 50 tokens"):
        evaluate(model, tokens, ones[1:], seq_len=16)
    with pytest.raises(DataError, match="nothing to score"):
        evaluate(model, tokens[:1], ones[:1], seq_len=16)
    with pytest.raises(DataError, match="sum to 0"):
        evaluate(model, tokens, ones * 0, seq_len=16)
    with pytest.raises(UsageError, match="stride 17 must lie between 1 and the sequence length 16"):
        evaluate(model, tokens, ones, seq_len=16, stride=17)
    model.table.data[3, 3] = math.nan
    with pytest.raises(ModelError, match="not finite between tokens"):
        evaluate(model, tokens, ones, seq_len=16)
