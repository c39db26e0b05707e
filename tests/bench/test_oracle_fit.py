"""Which runs the oracle is fitted on, and how its bands count them."""

import numpy as np
import pytest

from benchmarks.oracle import margins
from benchmarks.oracle_runs import rows_at, step_of
from pgolf.oracle.run import Run

SETTINGS = {"iterations": 20000.0, "max_wallclock_s": 600.0, "world_size": 8.0}
FACTS = {"folder_id": "1", "author": "", "pr": "7", "max_wallclock_s": "600", "post_ema_bpb": "", "final_bpb": "1.1"}
FACTS |= {"final_prequant_bpb": "1.2"}


def run_of(milliseconds):
    points = [(float(s), milliseconds * s, 2.2, float("nan")) for s in range(100, 2001, 100)]
    return Run("made", points, dict(SETTINGS), nats=0.6)


@pytest.mark.parametrize(
    ("steps", "seconds", "counted"),
    [(6000, 600, 1), (4600, 588, 1), (2000, 200, 0), (11000, 1100, 1), (900, 600, 0)],
    ids=["as planned", "slowed down", "stopped by hand", "longer than expected", "never there"],
)
def test_which_runs_count(steps, seconds, counted):
    facts = FACTS | {"steps_total": str(steps), "wallclock_s": str(seconds)}
    assert len(rows_at([(facts, run_of(100.0))], "step 1000", False)) == counted
    assert len(rows_at([(facts, run_of(100.0))], "step 1000", False, stopped=True)) == (steps > 1000)


def test_a_share_is_one_of_the_steps_expected_there():
    run = run_of(400.0)  # 1,500 steps
    assert step_of(run, "share 0.4") == pytest.approx(600)
    slower = [(s, ms if s < 500 else 2 * ms, loss, bpb) for s, ms, loss, bpb in run.points]
    assert step_of(Run("made", slower, dict(SETTINGS), nats=0.6), "share 0.8") == pytest.approx(600)


def test_a_folder_counts_once_in_a_band():
    errors = np.r_[np.linspace(-1, 1, 101), np.full(1000, 0.001)]
    folders = np.r_[np.arange(101), np.full(1000, 200)].astype(str)
    assert margins(errors, folders) == pytest.approx([-0.8, 0.8], abs=0.02)
    assert np.quantile(errors, 0.9) < 0.2
