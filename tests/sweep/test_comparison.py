import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.sweep import comparison

LINE = [(1000, 0.08), (2000, 0.02), (4000, 0.005)]  # the rise quarters when the bytes double


def points(series, curve, before=1.5):
    return [
        {"key": f"{series}{size}", "series": series, "label": f"{size} B", "bytes": size, "bpb": before + rise}
        for size, rise in curve
    ]


def test_between_points_the_rise_is_a_power_of_the_bytes():
    assert comparison.rise_at(LINE, 1000 * math.sqrt(2)).value == pytest.approx(0.04)
    assert comparison.bytes_at(LINE, 0.01).value == pytest.approx(2000 * math.sqrt(2))
    assert not comparison.bytes_at(LINE, 0.01).extrapolated
    assert comparison.rise_at(LINE, 2000) == comparison.CurveValue(0.02, False)


def test_beyond_the_points_the_last_line_goes_on_a_little_and_says_so():
    beyond = comparison.rise_at(LINE, 4800)
    assert beyond.extrapolated
    assert beyond.value == pytest.approx(0.005 / 1.2**2)
    assert comparison.bytes_at(LINE, 0.08 * 1.2**2) == comparison.CurveValue(pytest.approx(1000 / 1.2), True)
    assert comparison.bytes_at(LINE, 0.005 / 1.2**2) == comparison.CurveValue(pytest.approx(4800), True)
    for size in (700, 5100):
        assert comparison.rise_at(LINE, size) is None
    for rise in (0.2, 0.001):
        assert comparison.bytes_at(LINE, rise) is None


def test_rises_at_or_below_zero_are_straight_lines():
    curve = [(1000, 0.02), (4000, -0.02)]
    assert comparison.rise_at(curve, 2000).value == pytest.approx(0)
    assert comparison.bytes_at(curve, 0).value == pytest.approx(2000)
    assert comparison.bytes_at(curve, -0.03) is None


def test_one_point_says_nothing_of_others():
    assert comparison.rise_at([(1000, 0.1)], 1100) is None
    assert comparison.bytes_at([(1000, 0.1)], 0.2) is None
    assert comparison.bytes_at([], 0.2) is None


@given(st.floats(1001, 3999))
def test_reading_a_curve_both_ways_agrees(size):
    assert comparison.bytes_at(LINE, comparison.rise_at(LINE, size).value).value == pytest.approx(size)


def test_comparison_names_every_series_and_point_of_the_baseline():
    ours, theirs = points("ours", LINE), points("contest", [(2000, 0.08), (4000, 0.02)])
    refused = {"key": "x", "series": "ours", "label": "9 B", "refused": "does not fit"}
    rows = comparison.comparison([*ours, refused, *theirs], "contest", 1.5)
    assert [r["baseline"] for r in rows] == ["2000 B", "4000 B"]
    assert [r["bytes_ratio"] for r in rows] == pytest.approx([0.5, 0.5])
    assert [r["rise_ratio"] for r in rows] == pytest.approx([0.25, 0.25])
    assert rows[1]["bpb_at_equal_bytes"] == pytest.approx(1.505)


def test_the_pareto_set_has_no_point_that_another_beats():
    some = points("a", [(1000, 0.08), (2000, 0.09), (3000, 0.01)]) + points("b", [(1000, 0.1), (2500, 0.02)])
    assert comparison.pareto(some) == ["a1000", "b2500", "a3000"]


def test_points_that_are_all_but_equal_give_no_figure_beyond_them():
    flat = [(1000, 0.01), (2000, math.nextafter(0.01, 0))]
    assert comparison.bytes_at(flat, 0.02) is None
    steep = [(1000, 1e-9), (1001, 1.0)]
    assert comparison.rise_at(steep, 1250) is None
    assert comparison.rise_at([(1000, 1.9999999999999998), (2000, 2.0)], 1500).value == pytest.approx(2)
