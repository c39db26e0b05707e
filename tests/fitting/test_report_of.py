"""What a report alarms of: weights that went without anybody choosing so."""

import pytest

from pgolf.fitting.report_of import _losses
from pgolf.report import TensorRow


def row(name: str, error: float | None, rise: float | None, weights: int = 100) -> TensorRow:
    return TensorRow(name, [10, 10], "float32", "auto", "", weights, 20.0, error, rise)


@pytest.mark.parametrize(
    ("rows", "alarm"),
    [
        ([row("a", 0.1, 0.01), row("b", 0.9, 1e-5)], []),  # the market emptied b, and knows what that costs
        ([row("a", 0.1, None), row("b", 0.95, None)], ["left of b,", "--set NAME=keep"]),
        ([row("a", 0.1, None), row("b", 0.8, None)], []),  # less than half of it is noise
        ([row("a", 0.1, None), row("b", 0.8, None, 200)], ["too few bytes", "of 1 of 2 quantized tensors", "(b)"]),
        ([row("a", 0.9, 0.01), row("b", 0.8, 0.02), row("c", 0.1, 0.1, 90)], ["of 2 of 3 quantized", "(a, b)"]),
        ([row("a", 0.9, 0.001), row("b", 0.1, 0.02, 50)], []),  # a large embedding whose rare rows are empty
        ([row("a", None, None), row("b", 0.2, 0.1)], []),
    ],
)
def test_an_alarm_is_due_where_nobody_chose_the_loss(rows, alarm):
    notes = _losses(rows)
    assert len(notes) == bool(alarm)
    assert all(word in note for note in notes for word in alarm)
