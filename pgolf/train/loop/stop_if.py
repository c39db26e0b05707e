"""What `--stop-if` says: `final>1.6 and step>=100`, and whether it has come to pass."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pgolf.common.sizes import parse_size
from pgolf.errors import UsageError

NAMES = ("final", "packed", "size", "step", "seconds")
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_PART = re.compile(r"\s*([A-Za-z_]+)\s*(<=|>=|<|>)\s*([^\s<>=]+)\s*")
_NUMBER = re.compile(r"\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+")


@dataclass(frozen=True)
class Condition:
    """One comparison of one of NAMES; text: as it was written."""

    name: str
    sign: str
    value: float
    text: str

    def holds(self, values: Mapping[str, float]) -> bool:
        """Whether it is so; never while its value is not known."""
        return self.name in values and _SIGNS[self.sign](values[self.name], self.value)


@dataclass(frozen=True)
class StopIf:
    """All conditions must hold at once."""

    conditions: tuple[Condition, ...]

    @property
    def names(self) -> set[str]:
        """Of all values that it asks for."""
        return {condition.name for condition in self.conditions}

    def reason(self, values: Mapping[str, float]) -> str:
        """What ends the run, each condition with the value that it has: "final 1.8213 > 1.6"; "" while the run may go on."""
        if not all(condition.holds(values) for condition in self.conditions):
            return ""
        said = (f"{c.name} {_shown(values[c.name])} {c.sign} {_shown(c.value)}" for c in self.conditions)
        return " and ".join(said)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.5g}"


def parse(text: str) -> StopIf:
    """Read a `--stop-if`. UsageError names the part that is no condition."""
    parts = re.split(r"\band\b", text)
    return StopIf(tuple(_condition(part, text) for part in parts))


def _condition(part: str, text: str) -> Condition:
    found = _PART.fullmatch(part)
    if found is None or found[1] not in NAMES:
        raise UsageError(
            f"--stop-if {text!r}: {part.strip()!r} is no condition: write final>1.6, of {', '.join(NAMES)}, with < > <= >=, and "
            "'and' between several"
        )
    name, sign, value = found.groups()
    if name == "size":
        return Condition(name, sign, float(parse_size(value)), part.strip())
    if not _NUMBER.fullmatch(value):
        raise UsageError(f"--stop-if {text!r}: {value!r} is no number")
    return Condition(name, sign, float(value), part.strip())
