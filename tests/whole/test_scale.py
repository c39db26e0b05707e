"""docs/SCALE.md shows what the model of costs says today, and that model keeps to what was measured."""

import pytest

from benchmarks import scale


def test_the_page_has_the_tables_of_today():
    page = scale.PAGE.read_text()
    assert scale.written(page) == page


def test_two_ranks_take_at_most_six_tenths_of_one():
    for model in ("golf3m", "half"):
        found = scale.rows(model)
        assert found[2]["busiest"] / found[1]["busiest"] <= 0.6


def test_what_is_foreseen_of_models_worth_it_is_within_a_fifth():
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in scale.checked()][2:]
    large = [row for row in rows if int(row[1].replace(",", "")) > 10_000_000]
    assert {row[0] for row in large} >= {"half", "contest", "36M", "150M"}
    for row in large:
        assert float(row[6]) == pytest.approx(float(row[4]), rel=0.2), row


def test_the_shapes_count_what_the_models_have():
    for name, shape in {"golf3m": scale.GOLF3M, "half": scale.HALF, "contest": scale.CONTEST}.items():
        assert shape.weights == pytest.approx(scale.rows(name)[1]["weights"], rel=1e-3)


def test_more_ranks_take_less_time_and_send_more():
    constants = scale.fitted()
    for shape in scale.LARGE:
        eight, many = (scale.cost(shape, 1 << 17, ranks, constants) for ranks in (8, 32))
        assert many.calibrate == pytest.approx(eight.calibrate / 4)
        assert eight.pack / 4 < many.pack < eight.pack
        assert many.sums_sent > eight.sums_sent
        assert many.memory == eight.memory
