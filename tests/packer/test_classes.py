import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pgolf.errors import ArtifactError
from pgolf.packer.backends import rans_numba
from pgolf.packer.coder import aside, classes
from pgolf.packer.coder.strips import (
    MAX_SUMS,
    class_sums,
    from_strips,
    lane_bounds,
    strip_lengths,
    strip_starts,
    to_strips,
)
from pgolf.packer.coder.tables import ESCAPES, OFFSET
from pgolf.packer.coder.trellis import STRIP
from pgolf.packer.plane import SPREAD_STEPS, Plane, Spread


def gauss(rows, cols, sigma=2.0, row_spread=0.0, col_spread=0.0, seed=0):
    rng = np.random.default_rng(seed)
    r, c = np.exp2(rng.normal(0, row_spread, rows)), np.exp2(rng.normal(0, col_spread, cols))
    return np.rint(rng.normal(0, sigma, (rows, cols)) * r[:, None] * c).astype(np.int32), r, c


def test_classes_literal():
    sums = np.array([-100, -22, -1, 0, 17, 18, 21, 22, 200])
    found, widths = classes.classes_of(sums, trellis=0)
    assert found.tolist() == [0, 0, 21, 22, 39, 36, 39, 36, 39]
    assert widths.tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 24]
    narrower, _ = classes.classes_of(sums + SPREAD_STEPS, trellis=8)
    assert narrower.tolist() == found.tolist()


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(0, np.int16), (2**15 - 1, np.int16), (-(2**15), np.int16), (2**15, np.int32), (-(2**15) - 1, np.int32)],
)
def test_codes_are_narrowed_where_they_fit(code, dtype):
    found = classes.narrowed(np.array([[0, code, 1]], np.int32))
    assert found.dtype == dtype
    assert found[0, 1] == code


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=30))
@example([-127, -126, 127, 128])
def test_symbols_hold_the_value_or_its_parity(values):
    codes = np.array(values, np.int64)
    for value, symbol in zip(values, classes.symbols(codes).tolist(), strict=True):
        fits = ESCAPES - OFFSET <= value < OFFSET
        assert symbol == (value + OFFSET if fits else value & 1)


@given(st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(1, 24)), max_size=50))
def test_bits_put_aside_come_back(pairs):
    values, widths = np.array(pairs, np.int64).reshape(-1, 2).astype(np.int32).T
    for low in (1, 2):
        short, middles = aside.shorten(values, widths, low), aside.middle(values, widths, low)
        data = aside.write(middles, widths)
        assert len(data) == (widths.sum() + 7) // 8
        assert (aside.lengthen(short, aside.read(data, 0, widths), widths, low) == values).all()


@pytest.mark.parametrize("piece", [1, 2, 1 << 16])
def test_aside_literal(monkeypatch, piece):
    monkeypatch.setattr(aside, "_PIECE", piece)
    widths = np.array([3, 24, 1], np.int32)
    data = aside.write(np.array([0b101, 0xABCDEF, 1], np.int32), widths)
    assert data.hex() == "b579bdf0"
    assert aside.read(data, 0, widths).tolist() == [0b101, 0xABCDEF, 1]
    assert aside.read(data, 3, widths[1:]).tolist() == [0xABCDEF, 1]


@pytest.mark.parametrize("data", [b"", b"\xb5\x79\xbd", b"\xb5\x79\xbd\xf0\x00", b"\xb5\x79\xbd\xf1"])
def test_aside_refuses_the_wrong_length_and_fill(data):
    with pytest.raises(ArtifactError, match="put aside"):
        aside.check_all_read(data, 3 + 24 + 1)


@pytest.mark.parametrize(
    ("data", "bits", "good"),
    [(b"", 0, True), (b"\0", 0, False), (b"\xff", 8, True), (b"\xfe", 7, True), (b"\xff", 7, False), (b"\x80", 1, True),
     (b"\xc0", 1, False), (b"\xff", 9, False), (b"\xff\x80", 9, True), (b"\xff\xff", 16, True)],
)  # fmt: skip
def test_aside_ends_with_zeros_up_to_a_byte(data, bits, good):
    if good:
        aside.check_all_read(data, bits)
    else:
        with pytest.raises(ArtifactError, match="put aside"):
            aside.check_all_read(data, bits)


@given(hnp.arrays(np.int16, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9)))
def test_strips_round_trip_small(matrix):
    assert (from_strips(to_strips(matrix), matrix.shape) == matrix).all()


@pytest.mark.parametrize("rows", [1, STRIP - 1, STRIP, STRIP + 1, 3 * STRIP, 2 * STRIP + 7])
def test_strips_run_down_columns(rows):
    matrix = np.arange(rows * 3, dtype=np.int32).reshape(rows, 3)
    flat = to_strips(matrix)
    assert flat[: min(rows, STRIP)].tolist() == matrix[:STRIP, 0].tolist()
    assert strip_lengths(matrix.shape).sum() == matrix.size
    assert (from_strips(flat, matrix.shape) == matrix).all()
    at = 0
    for top in range(0, rows, STRIP):
        for column in matrix[top : top + STRIP].T:
            assert flat[at : at + len(column)].tolist() == column.tolist()
            at += len(column)


def test_strips_of_nothing_cost_nothing():
    assert strip_lengths((2**20, 0)).tolist() == []
    assert from_strips(np.zeros(0, np.int16), (2**20, 0)).shape == (2**20, 0)
    assert lane_bounds(strip_starts([]), 0).tolist() == [0]


def test_lane_bounds_are_strip_starts():
    bounds = lane_bounds(strip_starts([(1030, 2), (5, 3)]), 4)
    assert bounds.tolist() == [0, 1024, 2048, 2048, 2075]
    assert lane_bounds(strip_starts([(10, 1)]), 3).tolist() == [0, 10, 10, 10]


@given(st.integers(0, 1100), st.integers(0, 4), st.integers(0, 2**32))
def test_sums_stand_in_strip_order(rows, cols, seed):
    rng = np.random.default_rng(seed)
    s = Spread(rng.integers(-300, 300, rows).astype(np.int32), rng.integers(-9, 9, cols).astype(np.int32))
    sums = class_sums(s)
    expected = to_strips(s.rows[:, None] + s.cols[None, :])
    assert (sums.values[sums.where()] == expected).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_beyond_any_codes_are_refused(sign):
    """0 counts among the sums, whether it occurs or not."""
    assert MAX_SUMS == 1024 * SPREAD_STEPS
    zero, far = np.zeros(1, np.int32), np.array([sign * MAX_SUMS], np.int32)
    for spread_of in (lambda c: Spread(c, zero), lambda c: Spread(zero, c)):
        assert len(class_sums(spread_of(far - sign)).values) == MAX_SUMS
        with pytest.raises(ArtifactError, match="spread classes"):
            class_sums(spread_of(far))


@pytest.mark.parametrize(("sigma", "row_spread"), [(4.0, 0.7), (40.0, 2.0)])
def test_estimate_finds_row_and_column_spreads(sigma, row_spread):
    codes, r, c = gauss(400, 300, sigma, row_spread, 0.5)
    found = classes.estimate_spread(np.square(codes, dtype=np.float32))
    true = SPREAD_STEPS * (np.log2(sigma * r)[:, None] + np.log2(c))
    error = found.rows[:, None] + found.cols - true
    assert np.sqrt(np.mean(error**2)) < 0.6  # rounding both to whole classes alone makes 0.41


@pytest.mark.parametrize("sigma", [2.0, 3000.0])
@pytest.mark.parametrize(
    ("kind", "mode"), [((0.0, 0.0), "one"), ((0.6, 0.0), "rows"), ((0.0, 0.6), "cols"), ((0.6, 0.6), "both")]
)
def test_the_cheapest_mode_is_chosen(sigma, kind, mode):
    codes, r, c = gauss(300, 300, sigma, *kind)
    found = classes.choose_spread(Plane(codes))
    assert found.mode == mode
    error = found.spread.rows[:, None] + found.spread.cols - SPREAD_STEPS * (np.log2(sigma * r)[:, None] + np.log2(c))
    assert np.abs(error).mean() < 0.7


def test_entropy_literal():
    assert classes.entropy_bits(np.array([[2, 2, 0, 0], [0, 0, 0, 7], [1, 1, 1, 1]])) == 4 + 0 + 8


def test_tables_must_pay():
    """Rows whose spreads differ by a seventh: classes of their own would save less than their tables take."""
    found = classes.choose_spread(Plane(gauss(64, 64, 3.0, 0.2, 0.0)[0]))
    assert found.mode == "one"


def test_a_known_spread_is_used():
    codes, r, c = gauss(300, 300, 2.0, 0.6, 0.6)
    known = Spread(*(np.rint(SPREAD_STEPS * np.log2(x)).astype(np.int32) for x in (2.0 * r, c)))
    assert classes.choose_spread(Plane(codes, spread=known)).spread is known


def test_a_trellis_needs_its_spread():
    with pytest.raises(ValueError, match="spread"):
        classes.choose_spread(Plane(np.zeros((2, 2), np.int32), trellis=8))


@pytest.mark.parametrize("loops", [classes, rans_numba])
def test_count(loops):
    counts = loops.count(np.array([0, 3, 3], np.uint8), np.array([255, 7, 7], np.uint8), 4)
    assert counts.shape == (4, 256)
    assert (counts.sum(), counts[0, 255], counts[3, 7]) == (3, 1, 2)


def test_index_bits():
    assert classes.index_bits(np.array([5, 5, 5])) == 0
    assert classes.index_bits(np.array([0, 1] * 50)) == pytest.approx(116)
