"""One self-contained HTML page of a sweep: no network, no fonts or scripts from elsewhere, both themes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgolf.report.curves import by_kl
from pgolf.report.rendering import render
from pgolf.report.svg import picture
from pgolf.report.terminal import comparison_cells, point_cells

SHOWN = (
    "key",
    "series",
    "label",
    "bytes",
    "bits_per_weight",
    "bpb",
    "rise",
    "pack_seconds",
    "rise_spread",
    "kl",
    "same_top",
)


def frontier_page(results: Mapping[str, Any], title: str) -> str:
    """The page of a sweep."""
    points = {p["key"]: {k: p[k] for k in SHOWN if k in p} for p in results["points"] if "bpb" in p}
    return render(
        "frontier.html",
        title=title,
        data={"points": points},
        before=results["before"],
        baseline=results["baseline"],
        picture=picture(results),
        nearness=(near := by_kl(results)) and picture(near),
        comparison=comparison_cells(results),
        points=point_cells(results),
    )
