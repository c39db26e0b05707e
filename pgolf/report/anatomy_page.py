"""The page of `pgolf inspect --html`: where the bytes go, by layer and tensor, and what the codes look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgolf.report.names import shortened
from pgolf.report.rendering import render

WIDTH, ROW = 880, 20  # of the bars' picture
NAME, FIGURES = 230, 190  # left and right of the bars
LONGEST_NAME = 34  # characters


@dataclass(frozen=True)
class Bar:
    """top: its y; length: of the bar; wanted: the length if bytes followed the curvature, None where that is not known."""

    name: str
    says: str
    top: int
    length: float
    wanted: float | None


@dataclass(frozen=True)
class Bars:
    """One bar a row, each `row` high, beginning at x = `left`. what: the bars stand for."""

    what: str
    bars: tuple[Bar, ...]
    width: int = WIDTH
    row: int = ROW
    left: int = NAME

    @property
    def height(self) -> int:
        return len(self.bars) * self.row


def page_of(facts: Mapping[str, Any], name: str) -> str:
    """HTML of the facts of `anatomy.inspect`."""
    bits = 8 * facts["bytes"] / max(facts["weights"], 1)
    return render(
        "artifact.html",
        title=f"{name}: {facts['bytes']:,} bytes, {bits:.3f} bits a weight",
        data={},
        facts=facts,
        layers=bars(facts["layers"], "layer"),
        tensors=bars(facts["tensors"], "name"),
        rows=[{"cells": _cells(t), "counts": t.get("histogram", {}).get("counts", [])} for t in facts["tensors"]],
    )


def bars(rows: Sequence[Mapping[str, Any]], name: str) -> Bars:
    """Bars of bytes, the longest filling the room; name: the field that names a row."""
    top = max((r["bytes"] for r in rows), default=1) or 1
    total = sum(r["bytes"] for r in rows) or 1
    room = WIDTH - NAME - FIGURES
    return Bars(name, tuple(_bar(r, name, i * ROW, room / top, total) for i, r in enumerate(rows)))


def _bar(row: Mapping[str, Any], name: str, top: int, scale: float, total: float) -> Bar:
    """scale: length of a byte; total: bytes of all bars."""
    says = f"{row['bytes']:,.0f} B, {row['bits_per_weight']:.2f} bits a weight"
    share = row.get("curvature_share")
    wanted = None if share is None else min(share * total * scale, float(WIDTH - NAME - FIGURES))
    return Bar(shortened(row[name], LONGEST_NAME), says, top, row["bytes"] * scale, wanted)


def _cells(tensor: Mapping[str, Any]) -> list[str]:
    share = tensor.get("curvature_share")
    return [
        tensor["name"],
        "×".join(map(str, tensor["shape"])) or "scalar",
        tensor.get("shared_with") or tensor["note"],
        f"{tensor['bytes']:,.0f}",
        f"{tensor['bits_per_weight']:.2f}",
        "" if share is None else f"{100 * share:.1f}%",
        "{} .. {}".format(*tensor["code_range"]) if "code_range" in tensor else "",
    ]
