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
