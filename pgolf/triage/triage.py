"""All rows together: counts of techniques, groups of near-duplicates, what to look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.common.progress import Progress, silent
from pgolf.submission.count import LIMIT
from pgolf.triage import alike
from pgolf.triage.folders import found_in
from pgolf.triage.look import Neighbour, disagrees, look
from pgolf.triage.row import Row, row_of
from pgolf.triage.techniques import table


@dataclass(frozen=True)
class Triage:
    """rows: in the order of folders. near: (folder, later folder) -> share of their code that is
    the same, from alike.ALIKE on."""

    rows: list[Row]
    near: Mapping[tuple[str, str], float]
    limit: int

    def nearest(self, row: Row) -> Neighbour | None:
        """The folder whose code is most like that of a row."""
        shares = {a if b == row.folder else b: s for (a, b), s in self.near.items() if row.folder in {a, b}}
        best = max(shares, key=lambda name: shares[name], default=None)
        return (
            next((Neighbour(other, shares[best]) for other in self.rows if other.folder == best), None)
            if best
            else None
        )

    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """group -> technique -> {"on", "off"}: folders that have it; all of the table."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        for group, name, *_ in table():
            how = [row.techniques.get(group, {}).get(name) for row in self.rows]
            found.setdefault(group, {})[name] = {
                "on": how.count("on"),
                "off": len(how) - how.count("on") - how.count(None),
            }
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        rows = []
        for row in self.rows:
            nearest = self.nearest(row)
            near = None if nearest is None else {"folder": nearest.row.folder, "share": round(nearest.share, 4)}
            more = {"alike": near, "look": look(row, self.limit, nearest), "disagrees": disagrees(row.scores)}
            rows.append(row.to_json() | more)
        groups = alike.clusters([row.folder for row in self.rows], self.near)
        return {"limit": self.limit, "folders": rows, "techniques": self.counts(), "alike": groups}


def triage(roots: Iterable[Path], *, limit: int = LIMIT, progress: Progress = silent) -> Triage:
    """Read every submission folder of the trees; nothing of them is run. Raises as `folders.found_in`."""
    folders = found_in(roots)
    rows = []
    for done, folder in enumerate(folders, 1):
        rows.append(row_of(folder, limit))
        progress("triage", done, len(folders))
    return Triage(rows, alike.pairs({row.folder: alike.shingles(row.tokens) for row in rows}), limit)
