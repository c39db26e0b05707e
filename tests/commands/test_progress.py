"""Progress off a terminal: lines that say how far work is, how it stands, and what time is left."""

from __future__ import annotations

import pytest

from pgolf.commands import shared


def test_lines_tell_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 1000.0
    monkeypatch.setattr(shared.time, "monotonic", lambda: now)
    with shared.progress_bars() as update:
        update("tune, KL 0.5", 0, 100)
        now += shared.LINE_SECONDS
        update("tune, KL 0.25", 25, 100)
        update("tune, KL 0.2", 26, 100)  # too soon
        now += 20 * shared.LINE_SECONDS
        update("tune, KL 0.1", 50, 100)
        now += shared.LINE_SECONDS
        update("measure", 0, 8)
        now += shared.LINE_SECONDS
        update("measure", 8, 8)
    seconds = shared.LINE_SECONDS
    assert capsys.readouterr().err.splitlines() == [
        f"tune, KL 0.25: 25 of 100, about {3 * seconds:.0f} s left",
        f"tune, KL 0.1: 50 of 100, about {21 * seconds / 60:.0f} min left",
        "measure: 0 of 8",
        "measure: 8 of 8",
    ]


def test_the_time_left_is_that_of_the_pass_that_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(shared.time, "monotonic", lambda: now)
    with shared.progress_bars() as update:
        for seconds in (100, 40):
            update("quantize", 0, 4)
            now += seconds
            update("quantize, 1 of 3 tensors", 2, 4)
            update("quantize, 3 of 3 tensors", 4, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"quantize, 1 of 3 tensors: 2 of 4, about {left}" for left in ("2 min left", "40 s left")]
