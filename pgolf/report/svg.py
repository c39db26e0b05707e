"""The frontier as an SVG of our own, the same in a file and in the page.

What will surprise you: colours are CSS variables, so that one drawing serves a light and a dark background; the file
carries its style sheet with it, the page has it in its head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from pgolf.report.curves import DARK, LIGHT, Curve, apart, curves, height, log_ticks, round_ticks, show_bytes

WIDTH, HEIGHT = 880, 480
LEFT, RIGHT, TOP, BOTTOM = 78, 170, 16, 52  # margins; names stand right of the curves
FONT = "font-family:system-ui,sans-serif"


def colours(palette: tuple[str, ...], ink: str, paper: str, grid: str) -> str:
    """CSS variables of one theme."""
    lines = "".join(f"--c{i}:{colour};" for i, colour in enumerate(palette))
    return f"--ink:{ink};--paper:{paper};--grid:{grid};{lines}"


LIGHT_THEME = colours(LIGHT, "#1d2733", "#ffffff", "#d9dfe6")
DARK_THEME = colours(DARK, "#e4e9ef", "#14191f", "#36414d")
STYLE = (
    ".frontier text{fill:var(--ink);font-size:12px}.frontier .grid{stroke:var(--grid)}"
    ".frontier .curve{fill:none;stroke-width:2}.frontier .mark{stroke:var(--paper);stroke-width:1.2}"
    + "".join(f".frontier .s{i}{{stroke:var(--c{i})}}.frontier .f{i}{{fill:var(--c{i})}}" for i in range(len(LIGHT)))
)


def frontier_svg(results: Mapping[str, Any], title: str) -> str:
    """A whole SVG file: light, or dark where the viewer prefers it."""
    style = (
        f"svg{{{LIGHT_THEME}{FONT};background:var(--paper)}}"
        f"@media(prefers-color-scheme:dark){{svg{{{DARK_THEME}}}}}{STYLE}"
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{drawing(results, title, f"<style>{style}</style>")}\n'


def drawing(results: Mapping[str, Any], title: str, head: str = "") -> str:
    """The <svg> element: axes, a group of class "series" for each curve, each point focusable and named."""
    found = curves(results)
    place = _Place(found)
    names = apart([place.y(height(c.points[-1])) for c in found], 16)
    body = "".join(_series(c, place, name) for c, name in zip(found, names, strict=True))
    label = f"bits per byte above the unquantized {results['before']['bpb']:.4f} (log scale)"
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="frontier" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<title>{escape(title)}</title>{head}{_axes(place)}"
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">artifact</text>'
        f'<text transform="translate(16 {middle:.0f}) rotate(-90)" text-anchor="middle">{label}</text>'
        f"{body}</svg>"
    )


class _Place:
    """Where on the picture a number of bytes and a rise lie."""

    def __init__(self, found: list[Curve]) -> None:
        sizes = [p["bytes"] for c in found for p in c.points] or [1.0, 2.0]
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


def _axes(place: _Place) -> str:
    parts = []
    for size in round_ticks(*place.sizes):
        x = f"{place.x(size):.1f}"
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{show_bytes(size)}</text>')
    for rise in log_ticks(*place.rises):
        y = place.y(rise)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{rise:.4g}</text>')
    return "".join(parts)


def _series(curve: Curve, place: _Place, name_y: float) -> str:
    at = [(place.x(p["bytes"]), place.y(height(p))) for p in curve.points]
    path = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(at))
    dash = ' stroke-dasharray="6 4"' if curve.baseline else ""
    marks = "".join(_mark(curve, p, x, y) for p, (x, y) in zip(curve.points, at, strict=True))
    return (
        f'<g class="series" data-series="{escape(curve.name, quote=True)}">'
        f'<path class="curve s{curve.index}" d="{path}"{dash}/>{marks}'
        f'<text class="name f{curve.index}" style="fill:var(--c{curve.index})" x="{at[-1][0] + 10:.1f}" '
        f'y="{name_y + 4:.1f}">{escape(curve.name)}</text></g>'
    )


def _mark(curve: Curve, point: Mapping[str, Any], x: float, y: float) -> str:
    says = f"{curve.name}, {point['label']}: {point['bytes']:,} bytes, {point['bpb']:.5f} bits per byte"
    bar = ""
    if point.get("rise_spread"):
        bar = f"<title>spread {point['rise_spread']:.5f}</title>"
    return (
        f'<path class="mark f{curve.index}" data-key="{escape(str(point["key"]), quote=True)}" tabindex="0" '
        f'aria-label="{escape(says, quote=True)}" transform="translate({x:.1f} {y:.1f})" d="{SHAPES[curve.index]}">{bar}</path>'
    )


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
