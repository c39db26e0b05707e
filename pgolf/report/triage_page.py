"""The page of `pgolf triage`: all rows, techniques by count, groups of near-duplicates, what to look at by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgolf.report.anatomy_page import NAME, ROW, WIDTH, Bar, Bars
from pgolf.report.rendering import render
from pgolf.report.triage_table import HEADS, cells

FIGURES = 120  # right of the bars


def triage_page(facts: Mapping[str, Any], title: str) -> str:
    """HTML of the facts of `Triage.to_json`."""
    return render(
        "triage.html",
        title=title,
        data={},
        heads=HEADS,
        rows=[[folder["folder"], *cells(folder)] for folder in facts["folders"]],
        picture=_bars(facts["techniques"], len(facts["folders"])),
        groups=facts["alike"],
        folders=facts["folders"],
    )


def _bars(techniques: Mapping[str, Mapping[str, Mapping[str, int]]], folders: int) -> Bars:
    """One bar a technique that somebody has, as long as the share of folders that do."""
    known = [
        (f"{group}: {name}", counts["on"], counts["off"])
        for group, names in techniques.items()
        for name, counts in names.items()
        if counts["on"] or counts["off"]
    ]
    scale = (WIDTH - NAME - FIGURES) / folders
    bars = [
        Bar(name, f"{on}" + (f", {off} switched off" if off else ""), place * ROW, on * scale, None)
        for place, (name, on, off) in enumerate(known)
    ]
    return Bars("technique", tuple(bars))
