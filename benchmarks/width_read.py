"""What width.json tells: the best size at each byte count, its bits a weight, and the bytes that the better packers save."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
TUNED = "auto+tune"
PACKERS = ("contest", "auto", TUNED)
BITS = (1.1, 5.5)  # a weight, everything counted: outside nothing is packed
SEEDS = (0, 1, 2)
FEW = 4.0  # bits a weight, at which a smaller size may still be better
SHOWN = 0.25  # BPB above the best point of the picture


def curve(rows: Sequence[Row], packer: str, target: int) -> list[tuple[int, float]]:
    """(weights, BPB) of every size at a byte count, smallest first. rows: of one seed.

    A size with more room than BITS counts with its BPB before packing, which no packer betters.
    """
    found: dict[int, float] = {}
    for row in rows:
        if 8 * target > BITS[1] * row["weights"]:
            found[row["weights"]] = row["bpb"]
        for point in row["points"]:
            if (point["packer"], point["target"]) == (packer, target):
                found[row["weights"]] = point["bpb"]
    return sorted(found.items())


def best(points: Sequence[tuple[int, float]], target: int) -> dict[str, Any]:
    """The best size of a curve, its bits a weight, and whether a smaller and a larger one are worse."""
    at = min(range(len(points)), key=lambda i: points[i][1])
    weights, bpb = points[at]
    return {"weights": weights, "bits": 8 * target / weights, "bpb": bpb, "enclosed": 0 < at < len(points) - 1}


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each byte count with two sizes or more: the best of each packer there is, `auto` at the contest's best size, and the
    bytes that the others take to the BPB of the contest's best. rows: of one seed."""
    found: list[dict[str, Any]] = []
    for target in sorted({point["target"] for row in rows for point in row["points"]}):
        curves = {packer: points for packer in PACKERS if len(points := curve(rows, packer, target)) > 1}
        if curves.keys() >= set(PACKERS[:2]):
            line: dict[str, Any] = {packer: best(points, target) for packer, points in curves.items()}
            found.append(line | {"bytes": target, "auto there": dict(curves["auto"])[line["contest"]["weights"]]})
    for packer in PACKERS[1:]:
        ends = [(math.log(line["bytes"]), line[packer]["bpb"]) for line in found if packer in line]
        for line in found:
            if packer in line:
                line[packer]["bytes_at_contests_bpb"] = bytes_at(ends, line["contest"]["bpb"])
    return found


def bytes_at(ends: Sequence[tuple[float, float]], bpb: float) -> float | None:
    """Where a curve of (log bytes, BPB) reaches a BPB, linear between two points; None beyond them."""
    for (a, high), (b, low) in pairwise(ends):
        if low <= bpb <= high and low < high:
            return math.exp(a + (b - a) * (high - bpb) / (high - low))
    return None


def of(rows: Sequence[Row], equal: str, seed: int) -> list[Row]:
    return [row for row in rows if row["equal"] in {equal, "both"} and row["seed"] == seed]


def table(rows: Sequence[Row], equal: str) -> list[str]:
    """docs/SIZE.md's: a line for each byte count and seed, unless the contest's best is the smallest size and has few bits."""
    head = ["bytes", "seed", "contest: best size, bits", "BPB", "pgolf there", "pgolf: best size, bits", "BPB"]
    head += ["bytes for the contest's BPB", *(["with `--tune`"] if equal == "time" else [])]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    found = [(line["bytes"], seed, line) for seed in SEEDS for line in summary(of(rows, equal, seed))]
    for num_bytes, seed, line in sorted(found, key=lambda each: each[:2]):
        theirs, ours, tuned = (line.get(packer) for packer in PACKERS)
        if theirs["bits"] < FEW and not theirs["enclosed"]:
            continue
        same = ours["bytes_at_contests_bpb"]
        cells = [f"{num_bytes:,}", str(seed), _size(theirs), f"{theirs['bpb']:.4f}", f"{line['auto there']:.4f}"]
        cells += [_size(ours), f"{ours['bpb']:.4f}", f"{same / num_bytes:.2f}x".removeprefix("0") if same else ""]
        if equal == "time":
            cells += [f"{_size(tuned)}, {tuned['bpb']:.4f}" if tuned else ""]
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return lines


def _size(best: Row) -> str:
    end = "" if best["enclosed"] else " (end)"
    return f"{best['weights'] / 1e6:.2f}M".removeprefix("0") + f", {best['bits']:.1f}{end}"


def show(path: Path) -> None:
    """Print the tables and draw the picture beside the result."""
    rows = json.loads(path.read_text())["rows"]
    for equal in ("time", "tokens"):
        print("\n".join([f"equal {equal}:", *table(rows, equal)]))
    draw(rows, path.with_suffix(".png"))


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bytes against BPB, a line for each size and packer of equal time, seed 0."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = [row for row in of(rows, "time", 0) if row["points"]]
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
