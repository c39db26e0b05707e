"""The table of `pgolf pack`, as narrow as the terminal: one heading for each treatment, layers folded into one row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pgolf.errors import printable
from pgolf.report.names import all_shortened, common_front, pattern, shortened, skeleton

FOLD_FROM = 24  # tensors; up to so many each has a row of its own
MOST_ROWS = 48  # beyond, the smallest are told together
NARROWEST_NAME = 20  # columns; where the terminal leaves less, other columns go, the last of DISPENSABLE first
HEADS = ("", "shape", "bits", "bytes", "error", "loss rise")
DISPENSABLE = (0, 4, 1)  # of HEADS
INDENT, GAP = "  ", "  "

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of the table: `count` tensors of one treatment. cells: see HEADS."""

    name: str
    count: int
    cells: tuple[str, ...]
    num_bytes: float


def pack_table(report: Mapping[str, Any], width: int | None = None) -> list[str]:
    """Lines for Report.to_json(), at most `width` columns wide; None: as wide as they need, every name in full.

    Of a row that stands for several tensors bits are the mean, bytes and loss rise the sum, and error is the largest.
    """
    sections = {how: _natural(rows) for how, rows in _sections(report["rows"]).items()}
    shown = _largest({how: [_line([row]) for row in rows] for how, rows in sections.items()})
    if len(report["rows"]) > FOLD_FROM:
        dotted, loose = ({h: _folded(rows, anywhere) for h, rows in sections.items()} for anywhere in (False, True))
        shown = dotted if sum(map(len, dotted.values())) <= MOST_ROWS else _largest(loose)
    front = printable(common_front(row["name"] for row in report["rows"])) if width else ""
    notes = [f"names begin with {front}"] if front else []
    if any(line.cells[0] for lines in shown.values() for line in lines):
        notes.append("of several tensors: mean bits, bytes and loss rise together, largest error")
    bare = {how: [replace(line, name=line.name.removeprefix(front)) for line in lines] for how, lines in shown.items()}
    return [*notes, *_drawn(bare, width)]


def _sections(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by how they were treated, the treatment of most bytes first."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(_how(row), []).append(row)
    return dict(sorted(found.items(), key=lambda item: -sum(row["num_bytes"] for row in item[1])))


def _how(row: Row) -> str:
    if str(row["method"]).startswith("shared with "):
        return "one tensor with another"
    return printable(f"{row['method']} ({row['kept']})" if row["kept"] else str(row["method"]))


def _natural(rows: Sequence[Row]) -> list[Row]:
    """By name, layer 2 before layer 10."""
    return sorted(rows, key=lambda row: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", row["name"])])


def _folded(rows: Sequence[Row], anywhere: bool) -> list[Line]:
    """One line for the tensors of one shape whose names differ in numbers only."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault((skeleton(row["name"], anywhere=anywhere), tuple(row["shape"])), []).append(row)
    return [_line(group) for group in groups.values()]


def _line(rows: Sequence[Row]) -> Line:
    weights, num_bytes = sum(row["weights"] for row in rows), sum(row["num_bytes"] for row in rows)
    bits = sum(row["bits_per_weight"] * row["weights"] for row in rows) / weights if weights else None
    errors = [row["error"] for row in rows if row["error"] is not None]
    rises = [row["loss_rise"] for row in rows if row["loss_rise"] is not None]
    cells = (
        f"×{len(rows):,}" if len(rows) > 1 else "",
        "×".join(map(str, rows[0]["shape"])) or "scalar",
        "" if bits is None else f"{bits:.2f}",
        f"{num_bytes:,.0f}",
        f"{max(errors):.4f}" if errors else "",
        f"{sum(rises):.2e}" if rises else "",
    )
    return Line(printable(pattern([row["name"] for row in rows])), len(rows), cells, num_bytes)


def _largest(sections: Mapping[str, list[Line]]) -> dict[str, list[Line]]:
    """The MOST_ROWS lines of most bytes; in each section one line for its others."""
    every = sorted((line for lines in sections.values() for line in lines), key=lambda line: -line.num_bytes)
    chosen = {id(line) for line in every[:MOST_ROWS]}
    return {how: _with_rest(lines, chosen) for how, lines in sections.items()}


def _with_rest(lines: Sequence[Line], chosen: set[int]) -> list[Line]:
    rest = [line for line in lines if id(line) not in chosen]
    if len(rest) < 2:
        return list(lines)
    count, num_bytes = sum(line.count for line in rest), sum(line.num_bytes for line in rest)
    told = Line(f"{count:,} more, see --json", count, ("", "", "", f"{num_bytes:,.0f}", "", ""), num_bytes)
    return [*(line for line in lines if id(line) in chosen), told]


def _drawn(sections: Mapping[str, Sequence[Line]], width: int | None) -> Iterator[str]:
    """A head, then every section's treatment and lines."""
    every = [line for lines in sections.values() for line in lines]
    used = [i for i in range(len(HEADS)) if any(line.cells[i] for line in every)]
    sizes = {i: max(len(HEADS[i]), *(len(line.cells[i]) for line in every)) for i in used}
    room, names = _room(sizes, width), [line.name for line in every]
    short = all_shortened(names, room) if room else {name: name for name in names}
    left = max(map(len, short.values()), default=0)
    yield _joined("", left + len(INDENT), [HEADS[i].rjust(size) for i, size in sizes.items()])
    for how, lines in sections.items():
        yield shortened(how, width) if width else how
        alike = Counter(short[line.name] for line in lines)
        for line in lines:
            name = short[line.name]
            if alike[name] > 1 and name != line.name:  # what tells them apart was left out
                yield INDENT + line.name
                name = ""
            yield _joined(INDENT + name, left + len(INDENT), [line.cells[i].rjust(s) for i, s in sizes.items()])


def _joined(name: str, width: int, cells: Sequence[str]) -> str:
    return GAP.join([name.ljust(width), *cells]).rstrip()


def _room(sizes: dict[int, int], width: int | None) -> int | None:
    """Columns left for names, None for as many as they need; takes columns out of `sizes` where that is too few."""
    if width is None:
        return None
    dispensable = [i for i in DISPENSABLE if i in sizes]
    while True:
        room = width - len(INDENT) - sum(size + len(GAP) for size in sizes.values())
        if room >= NARROWEST_NAME or not dispensable:
            return max(room, NARROWEST_NAME)
        del sizes[dispensable.pop()]
