"""A context that is too long is found by the loss of its places."""

from __future__ import annotations

import numpy as np

from pgolf.scoring.contexts import harmless_length


def losses(seq_len: int, windows: int, trained: int) -> np.ndarray:
    """Nats that fall with the context and rise again beyond `trained` tokens, with the scatter of text."""
    place = np.tile(np.arange(seq_len), windows)
    noise = np.random.default_rng(0).exponential(1, len(place))
    return (1.5 + 1 / (1 + place / 20) + (place >= trained)) * noise


def test_the_length_up_to_which_the_loss_falls():
    assert harmless_length(losses(1024, 64, 512), [(0, 64 * 1024)], 1024) == 512
    assert harmless_length(losses(1024, 64, 1024), [(0, 64 * 1024)], 1024) is None


def test_only_whole_windows_of_each_run_count():
    """Runs of one and a half windows; their halves, which begin anew, would look like the places beyond."""
    nats = np.full(12 * 96, 5.0)
    runs = [(96 * i, 96 * i + 96) for i in range(12)]
    for first, _ in runs:
        nats[first : first + 64] = np.where(np.arange(64) < 32, 1.0, 2.0)
    assert harmless_length(nats, runs, 64) == 8
    nats[:] = 1.0
    assert harmless_length(nats, runs, 64) is None


def test_a_few_windows_say_nothing():
    assert harmless_length(losses(1024, 7, 512), [(0, 7 * 1024)], 1024) is None
    assert harmless_length(losses(4, 100, 2), [(0, 400)], 4) is None
