"""docs/COMMANDS.md tells every setting: its name, its range, and the methods that read it."""

import re
from pathlib import Path

import pytest

from pgolf.common.grammar import Kind, kinds
from pgolf.errors import UsageError
from pgolf.fitting import plan
from pgolf.quant import METHODS, Settings
from pgolf.train.qat.settings import QATSettings, parse_options

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "COMMANDS.md").read_text()
SECTION = PAGE.partition("## Settings, one grammar")[2].partition("\n## ")[0]
ROWS = {
    name: (values, set(re.findall(r"`([^`]+)`", readers)) or readers)
    for name, values, readers in re.findall(r"(?m)^\| `([a-z_]+)` \| ([^|]+) \| ([^|]+) \|", SECTION)
}
QAT_NAMES = [name for name in kinds(QATSettings) if name != "grid"]


def shown(kind: Kind) -> str:
    """A range as the table writes it."""
    if kind.base is bool:
        return "0, 1"
    assert kind.limits is not None
    least, most = (f"{x:.12g}".replace("1000000000", "10⁹").replace("1000000", "10⁶").replace("-", "−")
                   for x in (kind.limits.least, kind.limits.most))  # fmt: skip
    return f"{least} {'<' if kind.limits.above else '≤'} x ≤ {most}"


def test_every_setting_has_its_row() -> None:
    assert set(ROWS) == {*plan.NAMES, *QAT_NAMES}


@pytest.mark.parametrize("name", plan.NAMES)
def test_a_row_tells_the_range_and_the_methods_that_read_it(name: str) -> None:
    values, readers = ROWS[name]
    expected = {m for m in METHODS.ours if name in METHODS[m].reads}
    assert readers == (expected or "all")
    kind = plan.NAMES[name]
    if kind.limits is not None or kind.base is bool:
        assert values == shown(kind)
        return
    for value in range(-1, 300):
        if str(value) in values.split(", "):
            Settings(**{name: value})
        else:
            with pytest.raises(UsageError, match=f"{name}|trellis of"):
                Settings(**{name: value})


@pytest.mark.parametrize("name", QAT_NAMES)
def test_a_row_of_qat_is_read_by_it(name: str) -> None:
    assert ROWS[name][1] == {"--qat"}
    first = ROWS[name][0].split(", ")[0]
    good = first if first == "ste" else "1" if name == "seed" else "0.5"
    assert getattr(parse_options(f"{name}={good}"), name) == type(getattr(QATSettings(), name))(good)


@pytest.mark.parametrize("method", METHODS.ours)
def test_the_integer_range_is_told_for_the_methods_that_have_one(method: str) -> None:
    row = next(line for line in SECTION.splitlines() if line.startswith("| `int2`"))
    assert (f"`{method}`" in row) == ("bits" in METHODS[method].reads)


@pytest.mark.parametrize("word", ["int2", "int8", "keep", "fp16", "bf16", "fp32"])
def test_bare_words_are_told(word: str) -> None:
    assert f"`{word}`" in SECTION
    assert plan.parse_rule(f"*={word}").fields
