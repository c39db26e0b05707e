"""pyproject.toml's ranges and the two files of constraints say the same."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {"fuzz", "audit"}  # extras that no test needs


def pins(name):
    """Package -> version of a file of constraints."""
    lines = (line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#"))
    return dict(line.split("==") for line in lines)


def declared():
    """(package, lowest version) of every requirement, extras among them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [r for extra, needs in project["optional-dependencies"].items() if extra not in TOOLS for r in needs]
    extras = [r for r in extras if not r.startswith("pgolf[")]  # one extra within another
    return [re.match(r"([\w-]+)>=([\d.]+)", r).groups() for r in project["dependencies"] + extras]


def numbers(version):
    return [int(n) for n in version.split(".")]


def test_the_lowest_versions_are_the_lower_bounds():
    lowest = pins("constraints-lowest.txt")
    assert {name: lowest[name] for name, _ in declared()} == dict(declared())
    assert lowest.keys() - dict(declared()).keys() == {"pyparsing"}


@pytest.mark.parametrize(("package", "lowest"), declared())
def test_every_requirement_is_pinned_within_its_range(package, lowest):
    assert numbers(pins("constraints.txt")[package]) >= numbers(lowest)
