"""Packers on one model, bytes against the KL from the unquantized one: the picture and the table of docs/MEASURED.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TICKS = (0.05, 0.07, 0.1, 0.14, 0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 3, 5, 7, 10)  # MB


def families(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Packer, the first word of a row's name -> its (bytes, KL), smallest first; pgolf before all others."""
    found: dict[str, list[tuple[int, float]]] = {"pgolf": []}
    for row in rows:
        found.setdefault(row["name"].split()[0], []).append((row["bytes"], row["kl"]))
    return {name: sorted(points) for name, points in found.items() if points}


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A line a packer, both axes logarithmic: equal distances are equal ratios."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(8, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in families(rows).items():
        ours = name == "pgolf"
        how = {"color": "black", "linewidth": 2.5, "zorder": 3} if ours else {"linewidth": 1.2}
        axes.plot(*zip(*((size / 1e6, kl) for size, kl in points), strict=True), marker="o", label=name, **how)
    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = [row["bytes"] / 1e6 for row in rows]
    axes.set_xticks([tick for tick in TICKS if min(sizes) <= tick <= max(sizes)])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("file, MB")
    axes.set_ylabel("KL from the unquantized model, nats a token")
    axes.legend(frameon=False, fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", metadata={"Software": None})


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for everybody but pgolf, the farthest from the model first; the rise of the bits per byte where it is known."""
    told = all("bpb_rise" in row for row in rows)
    head = ["rival", "bytes", "compressed", "KL", *(["BPB"] if told else []), "pgolf, bytes", "of it"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in sorted(rows, key=lambda row: -row["kl"]):
        if row["name"].startswith("pgolf"):
            continue
        size, ours = row["bytes"], row["pgolf_bytes_at_equal_kl"]
        cells = [row["name"], f"{row.get('plain_bytes', size):,}", f"{size:,}", f"{row['kl']:.5f}"]
        cells += [f"{row['bpb_rise']:.4f}"] if told else []
        cells += ["beyond its curve", ""] if ours is None else [f"{ours:,}", f"{ours / size:.2f}"]
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return lines
