"""What the pictures of a frontier share: its curves in drawing order, their colours and marks, and round axis values.

Colours are Okabe and Ito's, which colour-blind people tell apart, adjusted for contrast on either background; every
curve also has a mark of its own and its name beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Theme:
    """Colours of CSS: palette of the curves, ink, paper, grid."""

    palette: tuple[str, ...]
    ink: str
    paper: str
    grid: str


LIGHT = Theme(
    ("#0072b2", "#d55e00", "#008060", "#b0508c", "#8a6d00", "#3a8fc7", "#7a4bb0", "#666666"),
    ink="#1d2733",
    paper="#ffffff",
    grid="#d9dfe6",
)
DARK = Theme(
    ("#5ab4f0", "#ff8c42", "#2fc79a", "#e79bc8", "#e3c64a", "#9fd3f5", "#c3a4ee", "#bbbbbb"),
    ink="#e4e9ef",
    paper="#14191f",
    grid="#36414d",
)
MARKS = ("o", "s", "^", "D", "v", "P", "X", "h")  # matplotlib's names
FLOOR = 1e-5  # BPB: the least rise that a logarithmic axis shows; below it scoring is noise


@dataclass(frozen=True)
class Curve:
    """A series by bytes. index: of its colour and mark; baseline: what the others are compared with."""

    name: str
    index: int
    baseline: bool
    points: tuple[Mapping[str, Any], ...]


def curves(results: Mapping[str, Any]) -> list[Curve]:
    """The series of a results.json that have figures, the baseline in grey (the last colour)."""
    known = [p for p in results["points"] if p.get("bpb") is not None]
    names = list(dict.fromkeys(p["series"] for p in known))
    grey, rest = len(LIGHT.palette) - 1, [n for n in names if n != results.get("baseline")]
    return [
        Curve(
            name,
            grey if name == results.get("baseline") else rest.index(name) % grey,
            name == results.get("baseline"),
            tuple(sorted((p for p in known if p["series"] == name), key=lambda p: p["bytes"])),
        )
        for name in names
    ]


def by_kl(results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The same results with the KL in the place of the rise; None where no point has one, as in folders of before."""
    points = [p | {"rise": p["kl"], "rise_spread": None} for p in results["points"] if p.get("kl") is not None]
    said = "KL from the unquantized model, nats per token (log scale)"
    return {**results, "points": points, "axis": said} if points else None


def axis(results: Mapping[str, Any]) -> str:
    """What the logarithmic axis is said to show."""
    said = results.get("axis")
    return str(said or f"bits per byte above the unquantized {results['before']['bpb']:.4f} (log scale)")


def height(point: Mapping[str, Any]) -> float:
    """What the logarithmic axis shows of a point."""
    return max(float(point["rise"]), FLOOR)


def show_bytes(num_bytes: float) -> str:
    """1,420,595 -> "1.42 MB"; 842,000 -> "842 kB"."""
    return f"{num_bytes / 1e6:,.4g} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.4g} kB"


def round_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About `count` round values within [low, high]."""
    raw = max(high - low, 1e-12) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within [low, high]."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high * (1 + 1e-9)]


def apart(heights: Sequence[float], distance: float) -> list[float]:
    """`heights` moved down just enough that neighbours stand `distance` apart: for labels beside curves."""
    out = list(heights)
    order = sorted(range(len(out)), key=lambda i: out[i])
    for before, after in pairwise(order):
        out[after] = max(out[after], out[before] + distance)
    return out
