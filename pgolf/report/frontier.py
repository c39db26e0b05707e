"""The pictures of a sweep, which show its Pareto frontier: frontier.png, .svg and .html, drawn from its results.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgolf.common.files import write_text
from pgolf.report.curves import by_kl
from pgolf.report.page import frontier_page
from pgolf.report.plots import frontier_png
from pgolf.report.svg import frontier_svg


def write(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw all three into `folder`, and kl.png and kl.svg where points have a KL; their paths, results.json's first."""
    title = headline(results)
    frontier_png(results, folder / "frontier.png", title=title)
    write_text(folder / "frontier.svg", frontier_svg(results, title))
    write_text(folder / "frontier.html", frontier_page(results, title))
    names = ["results.json", "frontier.png", "frontier.svg", "frontier.html"]
    if near := by_kl(results):
        said = "KL from the unquantized model against bytes"
        frontier_png(near, folder / "kl.png", title=said)
        write_text(folder / "kl.svg", frontier_svg(near, said))
        names += ["kl.png", "kl.svg"]
    return [folder / name for name in names]


def headline(results: Mapping[str, Any]) -> str:
    """One sentence: the best method against the middle one of the baseline's points that need no extrapolation."""
    known = [r for r in results["comparison"] if r["bytes_ratio"] is not None and not r["bytes_extrapolated"]]
    if not known:
        return f"Bits per byte against bytes: {results['before']['weights']:,} weights"
    series = min(known, key=lambda r: r["bytes_ratio"])["series"]
    mine = sorted((r for r in known if r["series"] == series), key=lambda r: r["baseline_bytes"])
    best = mine[(len(mine) - 1) // 2]
    return (
        f"{best['series']} needs {best['bytes_ratio']:.2f} times the bytes of {results['baseline']} "
        f"({best['baseline']}) at equal bits per byte"
    )
