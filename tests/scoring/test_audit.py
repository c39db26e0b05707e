"""The audit passes what is honest and catches what is not, seeing nothing but tokens and nats."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.data.tokenizers import load_tokenizer, stream_bytes, token_bytes
from pgolf.errors import DataError
from pgolf.scoring import audit, ttt
from pgolf.scoring.reading import Reading
from tests.helpers import Counting

VOCAB, BOS = 13, 0
TEXT = np.where(np.arange(400) % 50 == 0, BOS, np.random.default_rng(0).integers(1, VOCAB, 400)).astype(np.uint16)
LEARN = ttt.TTTSettings(rank=2, chunk=8, lr=0.1)
READINGS = {
    "disjoint": Reading(16),
    "sliding": Reading(16, 4),
    "documents": Reading(16, 4, documents=True),
    "ttt": Reading(16, ttt=LEARN),
}


def verdicts(score: audit.Score, reading: Reading) -> dict[str, bool | None]:
    text = audit.sample(TEXT, BOS, prefix=reading.audit_prefix, crosses=reading.crosses)
    return {check.name: check.passed for check in audit.scorer_checks(score, text, VOCAB)}


def read_by(reading: Reading, logits: Callable[[Tensor], Tensor]) -> audit.Score:
    return lambda tokens: reading.score(Counting(), tokens, BOS, logits=logits)


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
def test_the_honest_model_passes(reading: Reading):
    model = Counting()
    found = verdicts(lambda tokens: reading.score(model, tokens, BOS), reading)
    assert found == dict.fromkeys(("probabilities", "future", "memory", "documents"), True)


def unnormalised(tokens: np.ndarray) -> np.ndarray:
    """A cache of pairs adds to the probability of what it has seen, and takes from nobody."""
    nats = Reading(16, documents=True).score(Counting(), tokens, BOS)
    seen: set[tuple[int, int]] = set()
    for i, pair in enumerate(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True)):
        if pair in seen and tokens[i] != BOS:
            nats[i] = -np.log(np.exp(-nats[i]) + 0.5)
        seen = (seen if tokens[i] != BOS else set()) | {pair}
    return nats


class Peeking(Counting):
    """Sees the token that it has to predict, where the window holds it."""

    def forward(self, ids: Tensor) -> Tensor:
        nothing = torch.zeros(len(ids), 1, VOCAB)
        return super().forward(ids) + torch.cat([F.one_hot(ids[:, 1:], VOCAB), nothing], 1)


def seeing_two_ahead(ids: Tensor) -> Tensor:
    later = Counting()(ids.roll(-2, 1))
    return Counting()(ids) + 0.1 * later


class LearnsFirst:
    """Counts the pieces of the whole document, and only then scores it."""

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        starts = np.flatnonzero(tokens == BOS)
        rows = []
        for first, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
            share = (np.bincount(tokens[first:end], minlength=VOCAB) + 1) / (end - first + VOCAB)
            rows.append(-np.log(share[tokens[first + 1 : end + 1]]))
        return np.concatenate(rows)


class Remembers:
    """Logits that know how often each piece came in whatever was scored before."""

    def __init__(self) -> None:
        self.counts = torch.ones(VOCAB)

    def __call__(self, ids: Tensor) -> Tensor:
        logits = Counting()(ids) + self.counts.log()
        self.counts += torch.bincount(ids.flatten(), minlength=VOCAB)
        return logits


class Leaks:
    """Begins every run anew, but goes on counting from one document to the next."""

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        return Reading(16, documents=True).score(Counting(), tokens, BOS, logits=Remembers())


def test_an_unnormalised_distribution_is_caught():
    found = verdicts(unnormalised, READINGS["documents"])
    assert found["probabilities"] is False
    assert found["future"] is found["memory"] is found["documents"] is True


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
def test_peeking_one_token_ahead_is_caught(reading: Reading):
    assert verdicts(lambda tokens: reading.score(Peeking(), tokens, BOS), reading)["probabilities"] is False


def test_seeing_what_comes_later_is_caught():
    assert verdicts(read_by(READINGS["disjoint"], seeing_two_ahead), READINGS["disjoint"])["future"] is False


def test_learning_before_scoring_is_caught():
    found = verdicts(LearnsFirst(), READINGS["documents"])
    assert found["future"] is False
    assert found["probabilities"] is False
    assert found["documents"] is True


def test_learning_before_scoring_is_caught_in_our_own_training(monkeypatch: pytest.MonkeyPatch):
    """A chunk scored a second time, after the step on it."""
    honest = ttt._Learner.score

    def twice(self, tokens, step):
        honest(self, tokens, step)
        return honest(self, tokens, replace(step, learn=False))

    monkeypatch.setattr(ttt._Learner, "score", twice)
    found = verdicts(lambda tokens: READINGS["ttt"].score(Counting(), tokens, BOS), READINGS["ttt"])
    assert found["future"] is False
    assert found["probabilities"] is False


def test_a_leak_across_documents_is_caught():
    found = verdicts(Leaks(), READINGS["documents"])
    assert found["documents"] is False
    assert found["memory"] is True


def test_additions_that_outlive_their_document_are_caught(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ttt._Learner, "forget", lambda self, count=1: hasattr(self, "_up") or FORGET(self, count))
    found = verdicts(lambda tokens: READINGS["ttt"].score(Counting(), tokens, BOS), READINGS["ttt"])
    assert found["documents"] is False


FORGET = ttt._Learner.forget


def test_windows_across_documents_are_a_leak_only_where_they_must_not_be():
    score = read_by(READINGS["disjoint"], Counting())
    assert verdicts(score, READINGS["documents"])["documents"] is False
    assert verdicts(score, READINGS["disjoint"])["documents"] is True


def test_a_figure_made_otherwise_than_the_audited_scores_is_caught():
    """Honest on the short texts of an audit, counting the whole document on the long one."""

    def score(tokens: np.ndarray) -> np.ndarray:
        return LearnsFirst()(tokens) if len(tokens) > 300 else read_by(READINGS["documents"], Counting())(tokens)

    assert all(verdicts(score, READINGS["documents"]).values())
    assert audit.run(score, TEXT, score(TEXT), 100).passed is False
    honest = read_by(READINGS["documents"], Counting())
    assert audit.run(honest, TEXT, honest(TEXT), 100).passed is True


def test_a_memory_between_runs_is_caught():
    assert verdicts(read_by(READINGS["documents"], Remembers()), READINGS["documents"])["memory"] is False


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import sentencepiece

    model, path = io.BytesIO(), tmp_path_factory.mktemp("tokenizer") / "t.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the fox  jumps over the lazy dog"] * 20), model_writer=model, model_type="bpe",
        minloglevel=2, num_threads=1, byte_fallback=True, vocab_size=300, add_dummy_prefix=False,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return path


def test_a_wrong_byte_count_is_caught(tokenizer: Path):
    processor = load_tokenizer(tokenizer)
    rows = [[processor.bos_id(), *processor.encode(text)] for text in ("the fox", "naïve ☃  dog", "over the dog")]
    tokens = np.concatenate(rows)
    counts = stream_bytes(tokens, token_bytes(tokenizer))

    def check(counts: np.ndarray, total: int = len(tokens) - 1) -> audit.Check:
        return audit.text_bytes(tokens, counts, processor.bos_id(), tokenizer, total)

    assert (check(counts).passed, check(counts).number) == (True, 0)
    inflated = counts + (np.arange(len(tokens)) == 3)
    assert (check(inflated).passed, check(inflated).number) == (False, 1)
    assert check(inflated, total=len(rows[0]) + 2).passed is False
    contest = stream_bytes(tokens, token_bytes(tokenizer), convention="contest")
    assert check(contest).passed is (int(contest.sum()) == int(counts.sum()))
    assert audit.text_bytes(tokens, counts, 1, None, 5).verdict == "SKIP"


def test_size():
    assert audit.size(900, 100, 1000).verdict == "PASS"
    assert audit.size(900, 101, 1000).verdict == "FAIL"
    assert audit.size(900, 101, 1000).number == 1001
    assert audit.size(None, 0, 1000).verdict == "SKIP"


def test_too_little_text():
    with pytest.raises(DataError, match="too few for an audit"):
        audit.sample(TEXT[:6], BOS, prefix=2, crosses=16)
    text = audit.sample(TEXT[:30], BOS, prefix=4, crosses=0)
    assert {check.name: check.verdict for check in audit.scorer_checks(read_by(Reading(16), Counting()), text, VOCAB)}[
        "documents"
    ] == "SKIP"
