"""The picture of what is foreseen: curves, their continuation, and the band at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pgolf.common import extras
from pgolf.common.files import replacing
from pgolf.oracle.curve import points_of
from pgolf.oracle.model import Foresight

MOST = 10  # runs in a picture


def foresight_png(found: Sequence[Foresight], path: str | Path) -> None:
    """PNG of the first ten runs: curve so far, a line to the foreseen BPB before quantization, its 80% interval, and a point for
    the packed score."""
    extras.need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    seen = []
    for number, one in enumerate(found[:MOST]):
        color = f"C{number}"
        steps, values = points_of(one.run)
        axes.plot(steps, values, color=color, linewidth=1, label=Path(one.run.name).name)
        seen += values.tolist()
        band = one.bands.get("unpacked")
        if band is not None and math.isfinite(one.total) and len(steps):
            axes.plot([steps[-1], one.total], [values[-1], band.value], color=color, linestyle="--")
            axes.fill_between(
                [steps[-1], one.total],
                [values[-1], band.low],
                [values[-1], band.high],
                color=color,
                alpha=0.15,
                linewidth=0,
            )
            seen += [band.low, band.high]
        if "final" in one.bands and math.isfinite(one.total):
            packed = one.bands["final"]
            bars = [[max(0.0, packed.value - packed.low)], [max(0.0, packed.high - packed.value)]]
            axes.errorbar([one.total], [packed.value], bars, color=color, marker="o", markersize=4, capsize=3)
            seen += [packed.low, packed.high]
    if seen:
        low, high = min(seen), float(np.quantile(seen, 0.95))
        axes.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)
    axes.set(xlabel="step", ylabel="bits per byte (validation, or training loss)")
    axes.set_title("so far, dashed: foreseen before packing; points: packed; bands: 80%", loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    with replacing(Path(path)) as file:
        figure.savefig(file, format="png", metadata={"Software": None})
