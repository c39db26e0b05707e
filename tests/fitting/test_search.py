import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.fitting.search import COARSEST, TRIALS, Attempt, largest_that_fits


def curve(weights=1e6, fixed=5000, noise=0.0):
    """Sizes like a real packer's: linear in log2 of the step until codes run out, with a little deterministic noise."""

    def run(step):
        bits = math.log2(1 + 2 ** (2 * (4 - math.log2(step)))) / 2
        wiggle = noise * math.sin(1e4 * step)
        return Attempt(step, round(weights * bits / 8 + fixed + wiggle), None)

    return run


def found(target, run=None, finest=2**-16, start=1.0):
    return largest_that_fits(
        run or curve(), target, start=start, finest=finest, per_octave=125_000, tolerance=max(1e-3 * target, 200)
    )


@pytest.mark.parametrize("target", [20_000, 100_000, 300_000, 475_000, 505_500, 1_000_000, 1_900_000])
def test_budgets_are_filled_in_a_handful_of_trials(target):
    outcome = found(target)
    assert 0 <= target - outcome.best.size <= max(1e-3 * target, 200)
    assert outcome.trials <= 9


@given(target=st.integers(10_000, 2_000_000), start=st.floats(0.01, 100), noise=st.floats(0, 100))
def test_never_over_and_never_far_under(target, start, noise):
    outcome = found(target, curve(noise=noise), start=start)
    assert outcome.best.size <= target
    assert target - outcome.best.size <= max(1e-3 * target, 200)
    assert outcome.trials <= TRIALS


def test_near_targets_take_three_trials():
    start = curve()(1.0).size
    assert found(round(start * 0.99)).trials <= 3


@pytest.mark.parametrize("share", [0.8, 1.0, 1.3])
def test_two_trials_just_below_tell_the_slope(share):
    """No leap away from a target that is nearly reached, whatever slope was believed: golf3m took six trials so."""
    sizes, target = [], round(curve()(1.0).size * 1.011)

    def run(step):
        sizes.append(curve()(step).size)
        return Attempt(step, sizes[-1], None)

    largest_that_fits(run, target, start=1.0, finest=2**-16, per_octave=125_000 * share, tolerance=1e-3 * target)
    assert len(sizes) <= 3
    assert max(sizes) < 1.005 * target


def test_nothing_fits_under_the_fixed_part():
    outcome = found(4000)
    assert outcome.best is None
    assert outcome.last.step == COARSEST


def test_the_finest_step_is_a_wall():
    outcome = found(10**8, finest=0.5)
    assert outcome.best.step == 0.5
    assert outcome.trials <= 3
