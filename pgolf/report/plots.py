"""PNG pictures by matplotlib, drawn from results.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgolf.common import extras
from pgolf.common.files import replacing
from pgolf.report.curves import LIGHT, MARKS, Curve, axis, curves, height, log_ticks, show_bytes


def frontier_png(results: Mapping[str, Any], path: str | Path, *, title: str) -> None:
    """Bytes against the rise of the BPB over the unquantized model, or the KL (`curves.by_kl`)."""
    extras.need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(8, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_yscale("log")
    found = curves(results)
    for curve in found:
        _draw(axes, curve)
    if found:
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.legend(frameon=False)
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.4g}")
    axes.xaxis.set_major_formatter(lambda x, _: show_bytes(x))
    axes.set_xlabel("artifact")
    axes.set_ylabel(axis(results))
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(Path(path)) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def _draw(axes: Any, curve: Curve) -> None:
    x, y = [p["bytes"] for p in curve.points], [height(p) for p in curve.points]
    style = {"color": LIGHT.palette[curve.index], "marker": MARKS[curve.index], "markersize": 5, "linewidth": 1.6}
    axes.plot(x, y, linestyle="--" if curve.baseline else "-", label=curve.name, **style)
    spread = [p.get("rise_spread") or 0.0 for p in curve.points]
    if any(spread):
        axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=LIGHT.palette[curve.index], capsize=3)
