"""The frontier as an SVG of our own, the same in a file and in the page.

matplotlib's would be three to seven times as large, and lose that each point says what it is, takes the focus and answers
to the page's script, and that one drawing follows the viewer's theme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgolf.report.curves import Curve, apart, axis, curves, height, log_ticks, round_ticks, show_bytes
from pgolf.report.rendering import render

WIDTH, HEIGHT = 880, 480
LEFT, RIGHT, TOP, BOTTOM = 78, 170, 16, 52  # margins; names stand right of the curves
LINE = 16  # between two names


@dataclass(frozen=True)
class Tick:
    """A line of the grid, `at` x or y, and what its axis says there."""

    at: float
    says: str


@dataclass(frozen=True)
class Mark:
    """A point at (x, y). key: of the sweep; says: to who cannot see it; spread: of its rise over seeds, if there were any."""

    x: float
    y: float
    key: str
    says: str
    spread: float | None


@dataclass(frozen=True)
class Series:
    """A curve and where its points lie. shape: SVG path of a mark; name_y: where its name stands."""

    curve: Curve
    marks: tuple[Mark, ...]
    shape: str
    name_y: float


@dataclass(frozen=True)
class Picture:
    """All that is drawn, in units of the view box. axis: what the vertical one shows."""

    axis: str
    sizes: tuple[Tick, ...]
    rises: tuple[Tick, ...]
    series: tuple[Series, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def frontier_svg(results: Mapping[str, Any], title: str) -> str:
    """A whole SVG file: light, or dark where the viewer prefers it."""
    return render("frontier.svg", picture=picture(results), title=title)


def picture(results: Mapping[str, Any]) -> Picture:
    """Where everything of a sweep's picture stands."""
    found = curves(results)
    place = _Place(found)
    names = apart([place.y(height(c.points[-1])) for c in found], LINE)
    return Picture(
        axis=axis(results),
        sizes=tuple(Tick(place.x(size), show_bytes(size)) for size in round_ticks(*place.sizes)),
        rises=tuple(Tick(place.y(rise), f"{rise:.4g}") for rise in log_ticks(*place.rises)),
        series=tuple(_series(curve, place, name) for curve, name in zip(found, names, strict=True)),
    )


class _Place:
    """Where on the picture a number of bytes and a rise lie."""

    def __init__(self, found: Sequence[Curve]) -> None:
        sizes = [float(p["bytes"]) for c in found for p in c.points] or [1.0, 2.0]
        rises = [height(p) for c in found for p in c.points] or [0.001, 0.1]
        margin = 0.04 * (max(sizes) - min(sizes)) or 0.1 * max(sizes)
        self.sizes = (min(sizes) - margin, max(sizes) + margin)
        self.rises = (min(rises) / 1.25, max(rises) * 1.25)

    def x(self, num_bytes: float) -> float:
        low, high = self.sizes
        return LEFT + (num_bytes - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, rise: float) -> float:
        low, high = map(math.log, self.rises)
        return TOP + (high - math.log(rise)) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _series(curve: Curve, place: _Place, name_y: float) -> Series:
    return Series(curve, tuple(_mark(curve, point, place) for point in curve.points), SHAPES[curve.index], name_y)


def _mark(curve: Curve, point: Mapping[str, Any], place: _Place) -> Mark:
    says = f"{curve.name}, {point['label']}: {point['bytes']:,} bytes, {point['bpb']:.5f} bits per byte"
    says += f", KL {point['kl']:.5f}" if point.get("kl") is not None else ""
    x, y = place.x(point["bytes"]), place.y(height(point))
    return Mark(x, y, str(point["key"]), says, point.get("rise_spread"))


SHAPES = (  # as MARKS in curves.py: circle, square, triangle, diamond, triangle down, plus, cross, hexagon
    "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0-5 0Z",
    "M-4.5-4.5H4.5V4.5H-4.5Z",
    "M0-6L5.5 4.5H-5.5Z",
    "M0-6L6 0L0 6L-6 0Z",
    "M0 6L5.5-4.5H-5.5Z",
    "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    "M-6-3L-3-6L0-3L3-6L6-3L3 0L6 3L3 6L0 3L-3 6L-6 3L-3 0Z",
    "M5.5 0L2.75 4.8H-2.75L-5.5 0L-2.75-4.8H2.75Z",
)
