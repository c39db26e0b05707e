"""What width.json tells: the best size at each byte count, its bits a weight, and the bytes that the better packers save."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

Row = Mapping[str, Any]
TUNED = "auto+tune"
PACKERS = ("contest", "auto", TUNED)
BITS = (1.1, 5.5)  # a weight, everything counted: outside nothing is packed
SHOWN = 0.25  # BPB above the best point of the picture


def curve(rows: Sequence[Row], packer: str, target: int) -> list[tuple[int, float]]:
    """(weights, BPB) of every size at a byte count, means over the seeds that there are, smallest first.

    A size with more room than BITS counts with its BPB before packing, which no packer betters.
    """
    found: dict[int, list[float]] = {}
    for row in rows:
        if 8 * target > BITS[1] * row["weights"]:
            found.setdefault(row["weights"], []).append(row["bpb"])
        for point in row["points"]:
            if (point["packer"], point["target"]) == (packer, target):
                found.setdefault(row["weights"], []).append(point["bpb"])
    return [(weights, fmean(values)) for weights, values in sorted(found.items())]


def lowest(points: Sequence[tuple[int, float]]) -> tuple[float, float, bool]:
    """(weights, BPB, whether other sizes enclose it) of the best size.

    Enclosed, it is the vertex of the parabola over log weights through the best and its neighbours; else the best point, and
    the true one may lie beyond.
    """
    at = min(range(len(points)), key=lambda i: points[i][1])
    if not 0 < at < len(points) - 1:
        return float(points[at][0]), points[at][1], False
    (a, b, c), (f, g, h) = zip(*((math.log(n), y) for n, y in points[at - 1 : at + 2]), strict=True)
    left, right = (g - f) / (b - a), (h - g) / (c - b)
    bend = (right - left) / (c - a)
    x = (a + b) / 2 - left / (2 * bend)
    return math.exp(x), g + (x - b) * ((g - f) / (b - a) + bend * (x - a)), True


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each byte count with two sizes or more: the best of each packer there is, and the bytes that it takes to the BPB of
    the contest's best."""
    there = {point["packer"] for row in rows for point in row["points"]}
    packers = [packer for packer in PACKERS if packer in there]
    targets = sorted({point["target"] for row in rows for point in row["points"]})
    found = []
    for target in targets:
        curves = {packer: curve(rows, packer, target) for packer in packers}
        if min(map(len, curves.values())) < 2:
            continue
        line: dict[str, Any] = {"bytes": target}
        for packer, points in curves.items():
            weights, bpb, enclosed = lowest(points)
            line[packer] = {"weights": weights, "bits": 8 * target / weights, "bpb": bpb, "enclosed": enclosed}
        found.append(line)
    for line in found:
        for packer in packers[1:]:
            line[packer]["bytes_at_contests_bpb"] = bytes_at(found, packer, line["contest"]["bpb"])
    return found


def bytes_at(lines: Sequence[Row], packer: str, bpb: float) -> float | None:
    """Where the best of a packer reaches a BPB, linear in log bytes between two byte counts; None beyond them."""
    ends = [(math.log(line["bytes"]), line[packer]["bpb"]) for line in lines]
    for (a, high), (b, low) in pairwise(ends):
        if low <= bpb <= high and low < high:
            return math.exp(a + (b - a) * (high - bpb) / (high - low))
    return None


def of(rows: Sequence[Row], equal: str) -> list[Row]:
    return [row for row in rows if row["equal"] in {equal, "both"}]


def show(path: Path) -> None:
    """Print the tables and draw the picture beside the result."""
    rows = json.loads(path.read_text())["rows"]
    for equal in ("time", "tokens"):
        print(f"equal {equal}:")
        for line in summary(of(rows, equal)):
            told = [
                f"{packer} {best['bpb']:.4f} at {best['weights'] / 1e6:.2f}M x {best['bits']:.2f} bits"
                + ("" if best["enclosed"] else " (at the end of the range)")
                + (
                    f", {same / line['bytes']:.2f}x for the contest's"
                    if (same := best.get("bytes_at_contests_bpb"))
                    else ""
                )
                for packer, best in line.items()
                if packer != "bytes"
            ]
            print(f"  {line['bytes']:>9,} B: {'; '.join(told)}")
    draw(rows, path.with_suffix(".png"))


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bytes against BPB, a line for each size and packer of equal time, seed 0."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = [row for row in of(rows, "time") if row["seed"] == 0 and row["points"]]
    for index, row in enumerate(sorted(shown, key=lambda row: row["weights"])):
        for packer, style in zip(PACKERS, ("--", "-", ":"), strict=True):
            points = sorted((p["bytes"], p["bpb"]) for p in row["points"] if p["packer"] == packer)
            if not points:
                continue
            axes.plot(
                *zip(*points, strict=True), style, marker="o", color=f"C{index}", label=f"{row['size']}, {packer}"
            )
    axes.set_xscale("log")
    axes.set_xticks(ticks := sorted({p["target"] for row in shown for p in row["points"]}))
    axes.set_xticklabels([f"{tick / 1e3:,.0f} kB" for tick in ticks])
    axes.minorticks_off()
    best = min(point["bpb"] for row in shown for point in row["points"])
    axes.set_ylim(best - SHOWN / 20, best + SHOWN)  # what is beyond is nobody's choice
    axes.set_xlabel("artifact")
    axes.set_ylabel("bits per byte")
    axes.legend(frameon=False, fontsize=8, ncols=2)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", metadata={"Software": None})
