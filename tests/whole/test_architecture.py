"""docs/ARCHITECTURE.md names rooms, files and functions that are there, and leaves out no room."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pgolf"
TEXT = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def paths_of(line: str) -> list[tuple[str, list[Path]]]:
    """What a line names as a file or folder, with the places where it may be: also beside or in what was named before it."""
    found, folders = [], [PACKAGE, ROOT]
    for name in quoted(line):
        if re.fullmatch(r"[\w/]+\.py|[\w/]+/|examples/\w+", name):
            found.append((name, [folder / name for folder in folders]))
            path = next((place for place in found[-1][1] if place.exists()), PACKAGE)
            folders += [path, path.parent]
    return found


NAMED = [pair for line in TEXT.splitlines() for pair in paths_of(line)]
DOTTED = sorted({name for name in quoted(TEXT) if re.fullmatch(rf"({'|'.join(ROOMS)})(\.\w+)+", name)})


@pytest.mark.parametrize(("name", "places"), NAMED, ids=[name for name, _ in NAMED])
def test_what_is_named_is_there(name: str, places: list[Path]) -> None:
    assert any(place.exists() for place in places)


@pytest.mark.parametrize("name", DOTTED)
def test_dotted_names_lead_somewhere(name: str) -> None:
    parts = name.split(".")
    depth = next(n for n in range(len(parts), 0, -1) if _module(parts[:n]).exists())
    thing = import_module(".".join(["pgolf", *parts[:depth]]))
    for part in parts[depth:]:
        thing = getattr(thing, part)


def _module(parts: list[str]) -> Path:
    path = PACKAGE.joinpath(*parts)
    return path if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_its_line(room: str) -> None:
    assert re.search(rf"^\| \d+ \| .*`{room}/`", TEXT, re.MULTILINE)


def test_the_central_types_are_there() -> None:
    rows = re.findall(r"^\| \d+ \| (.+?) \| .* \| (.+?) \|$", TEXT, re.MULTILINE)
    assert len(rows) == len(ROOMS) + 1  # errors.py
    sources = {}
    for where, types in rows:
        room = next(name for name in quoted(where) if name.endswith("/") or name == "errors.py")
        files = [PACKAGE / room] if room.endswith(".py") else sorted((PACKAGE / room).rglob("*.py"))
        sources[room] = "\n".join(file.read_text() for file in files)
        for name in (word.split(".")[-1] for word in quoted(types) if word != "bytes"):
            assert re.search(rf"^(class {name}\b|{name} = )", sources[room], re.MULTILINE), (room, name)


def test_a_stranger_finds_many_things() -> None:
    table = TEXT[TEXT.index("| X | Y |") :].partition("\n\n")[0]
    assert len(table.splitlines()) - 2 >= 15
