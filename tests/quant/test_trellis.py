"""The trellis: its state tables, and the Viterbi search against brute force."""

from __future__ import annotations

import zlib
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.packer.coder.trellis import PARITY_CHECKS, STRIP, next_states, on_path, transitions
from pgolf.quant.rounding.feedback import gaussian_rates
from pgolf.quant.rounding.viterbi import Column, Rates, _bits, _round_one, _viterbi, _viterbi_fed, predecessors

FLAT = Rates(0, np.zeros((1, 8), np.float32), np.zeros(1, np.float32))

TRELLISES = [states for states in PARITY_CHECKS if states]  # 0 stands for scalar codes


def column(u, lam=0.0, kind=0, frozen=None, rates=FLAT, states=8) -> np.ndarray:
    """Codes of one column with the same λ and class for every entry."""
    u = np.asarray(u, np.float32)
    codes = np.empty(len(u), np.int32)
    still = np.zeros(len(u), bool) if frozen is None else np.asarray(frozen)
    if not states:
        return np.array([int(_round_one(x, lam, kind, rates, 1.0)) for x in u])
    same = np.full(len(u), lam, np.float32), np.full(len(u), kind, np.int32)
    _viterbi(unfed(u, *same, still), rates, predecessors(states), 0, 1, codes)
    return codes


def unfed(u, lam, kind, frozen) -> Column:
    """A column that no earlier one has fed, whose decoded steps are the lattice's."""
    return Column(u, u, np.ones(len(u), np.float32), lam, kind, frozen)


def walk(codes: np.ndarray, states: int, frozen: np.ndarray | None = None, state: int = 0) -> int:
    """Follow the path as the decoder does; fails where a code is not allowed. Returns the last state."""
    after = next_states(states)
    for i, code in enumerate(codes):
        if frozen is not None and frozen[i]:
            assert code % 2 == 0
        else:
            assert code % 2 == state % 2
            state = after[state, (code >> 1) & 1]
    return state


def best_by_force(u: np.ndarray, lam: float, rates: Rates, states: int) -> float:
    """Least cost over all branch sequences and all codes within reach."""
    after, best = next_states(states), np.inf
    for branches in product((0, 1), repeat=len(u)):
        state, cost = 0, 0.0
        for x, branch in zip(u, branches, strict=True):
            subset = (state & 1) + 2 * branch
            cost += min((x - k) ** 2 + lam * _bits(float(k), 0, rates) for k in range(-16 + subset, 17, 4))
            state = after[state, branch]
        best = min(best, cost)
    return best


def test_tables_of_the_literature() -> None:
    assert next_states(4).tolist() == [[0, 1], [2, 3], [1, 0], [3, 2]]
    assert next_states(8).tolist() == [[0, 2], [5, 7], [1, 3], [4, 6], [2, 0], [7, 5], [3, 1], [6, 4]]


@pytest.mark.parametrize(
    ("states", "crc"),
    [
        (0, 0x758D6336),
        (4, 0xA3E5F9A5),
        (8, 0x2DA10162),
        (16, 0x984445F1),
        (32, 0xE9CE577B),
        (64, 0xDD79F7C6),
        (128, 0xA07EC87F),
        (256, 0xBE011649),
    ],
)
def test_tables_never_change(states: int, crc: int) -> None:
    """A change here changes what old artifacts decode to."""
    assert zlib.crc32(transitions(states).astype("<i8").tobytes()) == crc
    assert STRIP == 1024


def test_every_breach_of_a_path_is_seen() -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([7, 4, 0, 7, 5])
    on, codes = rng.random(lengths.sum()) < 0.7, 2 * rng.integers(-9, 9, lengths.sum())
    for start, length in zip(np.cumsum(lengths) - lengths, lengths, strict=True):
        state = 0
        for i in range(start, start + length):
            codes[i] += (state & 1) * on[i]
            state = next_states(8)[state, codes[i] >> 1 & 1] if on[i] else state
    assert on_path(codes, on, lengths, 8) is True
    for i in range(len(codes)):
        codes[i] ^= 1
        assert on_path(codes, on, lengths, 8) is False
        codes[i] ^= 1
    assert on_path(codes[:0], on[:0], lengths[:0], 8) is True


@pytest.mark.parametrize("states", TRELLISES)
def test_every_state_has_two_ways_in_and_out(states: int) -> None:
    after = next_states(states)
    assert sorted(after.ravel().tolist()) == sorted([*range(states), *range(states)])
    assert after[0, 0] == 0
    before = predecessors(states)
    for state, branch in product(range(states), range(2)):
        assert after[before[state, branch], branch] == state
        assert before[state, branch] % 2 == (2 * state >= states)


@pytest.mark.parametrize("states", TRELLISES)
def test_the_code_obeys_its_parity_check(states: int) -> None:
    """h0 ∗ parity + h1 ∗ branch = 0 over GF(2), at every time after the memory is filled."""
    h0, h1 = PARITY_CHECKS[states]
    memory = states.bit_length() - 1
    branches = np.random.default_rng(states).integers(0, 2, 50)
    state, parities = 0, []
    for branch in branches:
        parities.append(state & 1)
        state = next_states(states)[state, branch]
    for n in range(memory, 50):
        checks = [(h0 >> i & 1) * parities[n - i] + (h1 >> i & 1) * branches[n - i] for i in range(memory + 1)]
        assert sum(checks) % 2 == 0


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=7), st.sampled_from([4, 8]), st.sampled_from([0.0, 0.4])
)
def test_viterbi_finds_the_best_path(u: list[float], states: int, lam: float) -> None:
    bits = np.minimum(np.abs(np.arange(0, 64, dtype=np.float32)), 9)[None] * np.float32(0.05)
    rates = Rates(0, bits, np.zeros(1, np.float32))  # too flat to make any but the nearest point of a subset worth it
    codes = column(u, lam, rates=rates, states=states)
    walk(codes, states)
    cost = sum((x - k) ** 2 + lam * _bits(float(k), 0, rates) for x, k in zip(u, codes, strict=True))
    assert cost <= best_by_force(np.asarray(u, np.float32), lam, rates, states) + 1e-4


@pytest.mark.parametrize("states", TRELLISES)
def test_frozen_entries_stay_even_and_the_path_can_be_continued(states: int) -> None:
    generator = np.random.default_rng(0)
    u, frozen = (5 * generator.standard_normal(400)).astype(np.float32), generator.random(400) < 0.3
    lam, kind = np.full(400, 0.3, np.float32), np.full(400, 30, np.int32)
    rates, before, codes = gaussian_rates(states), predecessors(states), np.empty(400, np.int32)
    state = _viterbi(unfed(u, lam, kind, frozen), rates, before, 0, 250, codes)
    assert walk(codes[:250], states, frozen[:250]) == state
    part = slice(250, 400)
    rest = unfed(u[part], lam[part], kind[part], frozen[part])
    _viterbi(rest, rates, before, state, 150, codes[part])
    walk(codes, states, frozen)
    assert np.abs(codes - u).max() < 6


@pytest.mark.parametrize("states", [4, 8, 64])
def test_without_feedback_between_rows_both_searches_agree(states: int) -> None:
    generator = np.random.default_rng(5)
    u, frozen = (4 * generator.standard_normal(90)).astype(np.float32), generator.random(90) < 0.2
    lam, kind = np.full(90, 0.36, np.float32), np.full(90, 32, np.int32)
    column, search = unfed(u, lam, kind, frozen), (gaussian_rates(states), predecessors(states), 0, 60)
    plain, fed = np.empty(90, np.int32), np.empty(90, np.int32)
    ends = [
        _viterbi(column, *search, plain),
        _viterbi_fed(column, np.zeros((90, 90), np.float32), *search, fed),
    ]
    np.testing.assert_array_equal(plain, fed)
    assert ends[0] == ends[1] == walk(plain[:60], states, frozen[:60])


def test_feedback_between_rows_lowers_the_cost_that_it_is_for() -> None:
    """Σ (eᵢ + ½·eᵢ₋₁)², whose feedback moves a target by half the error above."""
    u = (20 * np.random.default_rng(6).standard_normal(300)).astype(np.float32)
    column = unfed(u, np.zeros(300, np.float32), np.zeros(300, np.int32), np.zeros(300, bool))
    search = FLAT, predecessors(8), 0, 1
    push = np.zeros((300, 300), np.float32)
    for i in range(300):  # error fed to l: that of (I + ½S)⁻¹, one row of V over its diagonal
        push[i, i + 1 :] = -((-0.5) ** np.arange(1, 300 - i))
    plain, fed = np.empty(300, np.int32), np.empty(300, np.int32)
    _viterbi(column, *search, plain)
    _viterbi_fed(column, push, *search, fed)
    walk(fed, 8)

    def cost(codes: np.ndarray) -> float:
        e = u - codes
        return float(np.square(e[1:] + 0.5 * e[:-1]).mean())

    assert cost(fed) < 0.9 * cost(plain)


def test_a_trellis_beats_the_scalar_lattice_at_equal_rate() -> None:
    u = np.random.default_rng(1).uniform(-100, 100, 4000)
    errors = [np.square(column(u, states=states) - u).mean() for states in (4, 8, 32, 256)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.9 * 4 / 12  # against the even points alone
    assert errors[-1] < 0.255


def test_scalar_codes_are_nearest_without_rates_and_nearer_zero_with_them() -> None:
    u = np.array([0.4, 0.6, -0.6, 7.4, -7.6])
    assert column(u, states=0).tolist() == [0, 1, -1, 7, -8]
    steep = Rates(0, np.arange(0, 128, 2, dtype=np.float32)[None], np.zeros(1, np.float32))
    assert column(u, 0.25, rates=steep, states=0).tolist() == [0, 0, 0, 7, -7]


def test_a_dead_entry_follows_the_all_zero_path() -> None:
    u = 0.1 * np.random.default_rng(2).standard_normal(500)
    assert not column(u, 0.36, kind=10, rates=gaussian_rates(8)).any()


def test_bits_extrapolate_beyond_the_table() -> None:
    rates = Rates(0, np.array([[1.0, 2.0, 4.0]], np.float32), np.array([9.0, 0.5], np.float32))
    assert [_bits(float(k), 0, rates) for k in (0, -1, 2, 3, -4)] == [1, 2, 4, 6, 8]
    assert _bits(4.0, 1, rates) == 8  # no table: the parabola
