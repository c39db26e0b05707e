from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pgolf.common.sizes import parse_size, show_size
from pgolf.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16MB", 16_000_000),
        ("16MiB", 16_777_216),
        ("500kB", 500_000),
        ("2KiB", 2048),
        ("1.5 kB", 1500),
        ("15.3 MiB", 16_043_212),
        ("16_000_000", 16_000_000),
        ("16,000,000", 16_000_000),
        ("123", 123),
        (123, 123),
    ],
)
def test_sizes_are_decimal_or_binary_as_written(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "16 MBs", "-3MB", "0", "0.2", "1e6", "sixteen", "16M B"])
def test_other_texts_are_refused_with_examples(text):
    with pytest.raises(UsageError, match="size"):
        parse_size(text)


def test_shown_sizes_have_separators():
    assert show_size(1234567.4) == "1,234,567 B"


@pytest.mark.parametrize(
    ("number", "size"),
    [
        (16e6, 16_000_000), (15.9, 15), (np.int64(123), 123), (np.float32(2e4), 20_000), (np.uint8(7), 7),
        (Fraction(9, 2), 4), (10**25, 10**25),
    ],
)  # fmt: skip
def test_numbers_of_any_kind_are_sizes(number, size):
    assert parse_size(number) == size
    assert type(parse_size(number)) is int


@pytest.mark.parametrize("value", [True, float("nan"), float("inf"), -3.0, 0.5, None, b"16MB", [16], Path("16MB")])
def test_other_values_are_refused_as_texts_are(value):
    with pytest.raises(UsageError, match="size"):
        parse_size(value)
