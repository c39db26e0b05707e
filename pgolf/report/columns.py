"""Which columns of a table have room in the terminal: the dispensable go first, then names are shortened in their middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pgolf.errors import printable
from pgolf.report.names import all_shortened

NARROWEST_NAME = 20  # columns; where the others leave less, dispensable ones go
GAP = 2


class Cells(NamedTuple):
    """heads [n] and rows of n cells, names first. gone: the heads of those that had no room."""

    heads: list[str]
    rows: list[list[str]]
    gone: tuple[str, ...] = ()


def fitted(cells: Cells, width: int | None, dispensable: Sequence[int]) -> Cells:
    """`cells` in at most `width` columns; None: as they are. dispensable: places in heads, what goes first before the others."""
    heads, rows, _ = cells
    if width is None or not rows:
        return cells
    used = [i for i in range(len(heads)) if i == 0 or any(row[i] for row in rows)]
    sizes = {i: max(len(heads[i]), *(len(row[i]) for row in rows)) for i in used}
    gone = []
    for i in [i for i in dispensable if i in sizes]:
        if _room(sizes, width) >= min(sizes[0], NARROWEST_NAME):
            break
        del sizes[i]
        gone.append(heads[i])
    names = [printable(row[0]) for row in rows]
    short = all_shortened(names, max(_room(sizes, width), NARROWEST_NAME))
    kept = [[short[name], *(row[i] for i in sizes if i)] for name, row in zip(names, rows, strict=True)]
    return Cells([heads[i] for i in sizes], kept, tuple(head for head in gone if head))


def _room(sizes: dict[int, int], width: int) -> int:
    """Columns that the others leave to the names."""
    return width - sum(size + GAP for i, size in sizes.items() if i)
