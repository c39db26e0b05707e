"""A reading says what it does, and does what the functions behind it do."""

from __future__ import annotations

import numpy as np
import pytest

from pgolf.errors import DataError, UsageError
from pgolf.models.logits import Logits
from pgolf.scoring import bpb, ttt
from pgolf.scoring.reading import Reading
from tests.helpers import Counting, losses_that_note_devices

BOS = 0
TOKENS = np.where(np.arange(100) % 30 == 0, BOS, np.random.default_rng(0).integers(1, 13, 100)).astype(np.uint16)
STARTS = np.array([0, 30, 60, 90])


def test_each_reading_is_its_function():
    model = Counting()
    options = {"seq_len": 16, "stride": 4}
    assert (Reading(16, 4).score(model, TOKENS, BOS) == bpb.score_windows(model, TOKENS, **options)).all()
    within = bpb.score_windows(model, TOKENS, **options, starts=STARTS)
    assert (Reading(16, 4, documents=True).score(model, TOKENS, BOS) == within).all()
    settings = ttt.TTTSettings(2, 8, 0.01)
    learned = ttt.score_and_learn(model, TOKENS, STARTS, seq_len=16, settings=settings)
    assert (Reading(16, ttt=settings).score(model, TOKENS, BOS) == learned).all()


def test_a_model_elsewhere_gets_its_ids_there(monkeypatch: pytest.MonkeyPatch):
    """`pgolf eval --device cuda` sent them to the CPU; the device `meta` stands for a GPU."""
    monkeypatch.setattr(Logits, "__call__", lambda self, ids: self.model(ids))  # its checks read values, meta has none
    seen: list[str] = []
    Reading(16).score(Counting().to("meta"), TOKENS, BOS, losses=losses_that_note_devices(seen))
    assert set(seen) == {"meta"}


@pytest.mark.parametrize(
    ("reading", "text", "crosses"),
    [
        (Reading(16), "windows of 16, stride 16", 16),
        (Reading(16, 4, documents=True), "windows of 16, stride 4 within documents", 0),
        (
            Reading(16, ttt=ttt.TTTSettings(2, 8, 0.01)),
            "test-time training, context 16, rank 2, chunk 8, learning rate 0.01",
            0,
        ),
    ],
)
def test_what_a_reading_says_of_itself(reading: Reading, text: str, crosses: int):
    assert str(reading) == text
    assert reading.crosses == crosses
    assert reading.audit_prefix % 2 == 1


def test_bad_settings():
    with pytest.raises(UsageError, match="--stride and --ttt"):
        Reading(16, 4, ttt=ttt.TTTSettings())
    with pytest.raises(UsageError, match="stride 17"):
        Reading(16, 17).score(Counting(), TOKENS, BOS)
    with pytest.raises(DataError, match="nothing to score: 1 tokens"):
        Reading(16).score(Counting(), TOKENS[:1], BOS)
