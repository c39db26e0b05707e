"""The table of techniques, techniques.tsv: by what in a script's code each is seen, and which settings switch it off.

A line is group, name, pattern, switch. The pattern is looked for in `script.Code.text` and in the settings, which stand below
it as lines `name=value`, whatever their case. The switch, if any, is a pattern of whole names of settings, which turns the
technique off where all that it fits are off; or `name:value`, where they have that value; or `name=value`, where they have
another; or `name!=other`, where they have the value of that other setting. Of several, with bars between them, one is enough.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from pgolf.triage.script import is_off


class Technique(NamedTuple):
    """A line of the table; see above."""

    group: str
    name: str
    pattern: str
    switch: str


_PARTS = re.compile(r"((?:\(\?:|[^:=!])*)(?:(!=|=|:)(.*))?")  # of a switch: names, sign, value


@cache
def table() -> list[Technique]:
    """All techniques, in the order of the file."""
    text = (files("pgolf.triage") / "techniques.tsv").read_text("utf-8")
    lines = list(csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    return [Technique(*line) for line in lines[1:]]


def seen(code: str, settings: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """group -> name -> "on", or the setting that switches it off, as "name=value", of what a script's code shows."""
    found: dict[str, dict[str, str]] = {}
    text = code + "\n" + "".join(f"{name}={value}\n" for name, value in sorted(settings.items()))
    for technique in table():
        if _pattern(technique.pattern).search(text):
            found.setdefault(technique.group, {})[technique.name] = _off(technique.switch, settings) or "on"
    return found


@cache
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.I | re.M)


def _off(switch: str, settings: Mapping[str, str]) -> str:
    """The setting that turns it off, "" if none does."""
    for rule in _rules(switch):
        name, sign, value = _PARTS.fullmatch(rule).groups("")  # type: ignore[union-attr]  # fits every rule
        fitting = {setting: has for setting, has in settings.items() if _pattern(name).fullmatch(setting)}
        if fitting and all(_is_off(has, sign, value, settings) for has in fitting.values()):
            return "{}={}".format(*next(iter(fitting.items())))
    return ""


def _is_off(has: str, sign: str, value: str, settings: Mapping[str, str]) -> bool:
    match sign:
        case ":":
            return bool(_pattern(value).fullmatch(has))
        case "=":
            return not _pattern(value).fullmatch(has)
        case "!=":
            return settings.get(value) == has
    return is_off(has)


@cache
def _rules(switch: str) -> list[str]:
    """A switch's alternatives, at the bars outside of brackets."""
    rules, depth = [""], 0
    for char in switch:
        depth += (char == "(") - (char == ")")
        if char == "|" and not depth:
            rules.append("")
        else:
            rules[-1] += char
    return [rule for rule in rules if rule]
