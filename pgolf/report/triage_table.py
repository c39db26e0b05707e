"""A triage in lines of 80 columns: a row a folder, techniques by count, groups of near-duplicates, what to look at by hand."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pgolf.report.names import all_shortened

WIDTH = 80
NAME = 37  # columns of a folder's name
REASONS = 4  # shown of one folder
HEADS = ("folder", "claimed", "logs", "bytes", "seen", "look")


def lines(facts: Mapping[str, Any]) -> list[str]:
    """All of it; of one folder its techniques by name."""
    folders = facts["folders"]
    said = _table(folders)
    said += ["", *(_of_one(folders[0]) if len(folders) == 1 else _counts(facts["techniques"]))]
    if facts["alike"]:
        said += [
            "",
            "nearly the same code:",
            *(line for group in facts["alike"] for line in _wrapped("  ", "  ".join(group))),
        ]
    if any(folder["look"] or folder["notes"] for folder in folders):
        said += ["", "to look at by hand:", *(line for folder in folders for line in _reasons(folder))]
    return said


def cells(folder: Mapping[str, Any]) -> list[str]:
    """A row but for its name. ~ a claim that only the README makes, ≠ logs that give another score."""
    found = folder["scores"]
    claimed = "" if found["said"] is None else f"{'~' if found['claimed'] is None else ''}{found['said']:.4f}"
    logs = "" if found["recomputed"] is None else f"{'≠' if folder['disagrees'] else ''}{found['recomputed']:.4f}"
    size = "" if folder["total_bytes"] is None else f"{folder['total_bytes']:,}"
    return [claimed, logs, size, str(folder["seen"]), str(len(folder["look"]) or "")]


def _table(folders: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [folder["folder"] for folder in folders]
    leaves = [name.rpartition("/")[2] for name in names]
    shown = leaves if len(set(leaves)) == len(leaves) else names
    short = all_shortened(shown, NAME)
    rows = [HEADS, *((short[name], *cells(folder)) for name, folder in zip(shown, folders, strict=True))]
    return [f"{a:<{NAME}} {b:>7} {c:>7} {d:>11} {e:>5} {f:>5}" for a, b, c, d, e, f in rows]


def _counts(techniques: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Iterator[str]:
    """Techniques of each group by the number of folders, those that nobody has left out."""
    yield "techniques, and in how many folders; +: as many more have them switched off"
    for group, names in techniques.items():
        known = sorted((name for name in names if any(names[name].values())), key=lambda name: -names[name]["on"])
        shown = [f"{name} {names[name]['on']}" + (f"+{off}" if (off := names[name]["off"]) else "") for name in known]
        if shown:
            yield from _wrapped(f"  {group}: ", ", ".join(shown))


def _of_one(folder: Mapping[str, Any]) -> Iterator[str]:
    for group, names in folder["techniques"].items():
        shown = [name if how == "on" else f"{name} (off: {how})" for name, how in names.items()]
        yield from _wrapped(f"  {group}: ", ", ".join(shown))


def _group(names: Sequence[str]) -> Iterator[str]:
    """The first of a group, and below it the others."""
    for place, name in enumerate(names):
        yield from _wrapped("    " if place else "  ", name)


def _reasons(folder: Mapping[str, Any]) -> list[str]:
    reasons = list(dict.fromkeys([*folder["look"], *folder["notes"]]))
    if not reasons:
        return []
    more = [f"{len(reasons) - REASONS} more, see --json"] if len(reasons) > REASONS else []
    said = [line for reason in [*reasons[:REASONS], *more] for line in _wrapped("    ", reason)]
    return [*_wrapped("  ", folder["folder"]), *said]


def _wrapped(begin: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=begin, subsequent_indent=" " * (len(begin) - len(begin.lstrip()) + 2)
    )
