"""The page of `pgolf inspect --html`: where the bytes go, by layer and tensor, and what the codes look like."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from pgolf.report.page import THEME_SCRIPT, page

WIDTH, ROW, NAME = 880, 20, 230  # of the bars' picture; NAME: room for names


def page_of(facts: Mapping[str, Any], name: str) -> str:
    """HTML of the facts of `anatomy.inspect`."""
    bits = 8 * facts["bytes"] / max(facts["weights"], 1)
    title = f"{name}: {facts['bytes']:,} bytes, {bits:.3f} bits a weight"
    body = f"""<h1>{escape(title)}</h1>
<p>{facts["weights"]:,} weights in {len(facts["tensors"])} tensors; {facts["shared_bytes"]:,.0f} bytes of header and tables
belong to no single tensor.</p>
<div class="bar" id="toggles"></div>
<h2>Bytes by layer</h2>
<div class="picture">{bars(facts["layers"], "layer")}</div>
<h2>Bytes by tensor</h2>
<div class="picture">{bars(facts["tensors"], "name")}</div>
<h2>Tensors</h2>
{_tensors(facts)}
<p class="note">Curvature: share of what an equally small relative error would cost, where a curvature file was given.
Codes: how often integers around zero occur; a bar stands for one integer, or for 2, 4, 8... neighbours where they spread
wide, and the outermost hold everything beyond.</p>"""
    return page(title, body, {}, THEME_SCRIPT)


def bars(rows: list[Mapping[str, Any]], name: str) -> str:
    """Horizontal bars of bytes, filled; an outline shows the share of the curvature where it is known."""
    top = max((r["bytes"] for r in rows), default=1) or 1
    total = sum(r["bytes"] for r in rows) or 1
    room = WIDTH - NAME - 190
    parts = []
    for i, r in enumerate(rows):
        y, width = i * ROW, r["bytes"] / top * room
        says = f"{r['bytes']:,.0f} B, {r['bits_per_weight']:.2f} bits a weight"
        parts.append(
            f'<text x="{NAME - 8}" y="{y + 14}" text-anchor="end">{escape(_short(r[name]))}</text>'
            f'<rect class="f0" x="{NAME}" y="{y + 3}" width="{width:.1f}" height="{ROW - 6}"/>'
            f'<text x="{NAME + width + 6:.1f}" y="{y + 14}">{says}</text>'
        )
        share = r.get("curvature_share")
        if share is not None:
            x = NAME + min(share * total / top * room, room)
            parts.append(f'<path class="curve s1" d="M{x:.1f} {y + 1}V{y + ROW - 1}"/>')
    key = '<p class="note">Orange line: where the bar would end if bytes followed the curvature.</p>'
    known = any(r.get("curvature_share") is not None for r in rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="frontier" viewBox="0 0 {WIDTH} {len(rows) * ROW}" role="img" '
        f'aria-label="bytes of each {name}">{"".join(parts)}</svg>{key if known else ""}'
    )


def _short(name: str) -> str:
    return name if len(name) <= 34 else f"{name[:16]}…{name[-17:]}"


def _tensors(facts: Mapping[str, Any]) -> str:
    rows = []
    for t in facts["tensors"]:
        share = t.get("curvature_share")
        cells = [
            t["name"],
            "×".join(map(str, t["shape"])) or "scalar",
            t.get("shared_with") or t["note"],
            f"{t['bytes']:,.0f}",
            f"{t['bits_per_weight']:.2f}",
            "" if share is None else f"{100 * share:.1f}%",
            "{} .. {}".format(*t["code_range"]) if "code_range" in t else "",
        ]
        plain = "".join(f"<td>{escape(c)}</td>" for c in cells)
        rows.append(f"<tr>{plain}<td>{_histogram(t['histogram']['counts'] if 'histogram' in t else [])}</td></tr>")
    heads = "".join(
        f"<th>{h}</th>" for h in ("tensor", "shape", "how", "bytes", "bits a weight", "curvature", "range", "codes")
    )
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _histogram(counts: list[int]) -> str:
    top = max(counts, default=0)
    if not top:
        return ""
    parts = "".join(
        f'<rect class="f0" x="{6 * i}" y="{24 - 24 * n / top:.1f}" width="5" height="{24 * n / top:.1f}"/>'
        for i, n in enumerate(counts)
    )
    return f'<svg class="frontier" style="min-width:0;width:{6 * len(counts)}px" viewBox="0 0 {6 * len(counts)} 24">{parts}</svg>'
