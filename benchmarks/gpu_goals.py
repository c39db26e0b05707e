"""What an H100 is to show, each goal beside the figure that some step of gpu.py measured: met, missed or not measured.

The bars themselves stand in `pgolf.bench.suite`; a step that measures one tells it in its facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Goal(NamedTuple):
    """words: for people. bar: its name in the facts of `pgolf bench`. limit: as people write it."""

    words: str
    bar: str
    limit: str


GOALS = (
    Goal("load 36M weights from the page cache, all in", "seconds to load", "<= 50 ms"),
    Goal("decode 36M codes, kernels alone", "seconds to decode 36M codes", "<= 5 ms"),
    Goal("dequant, share of a copy's bandwidth", "dequant, share of a copy", ">= 0.8"),
    Goal("evaluation of an artifact, of dense speed", "evaluation of an artifact against dense", ">= 0.98"),
    Goal("evaluation, MFU", "evaluation, MFU", ">= 0.4"),
    Goal("quant_linear, 4 bits, 8192x8192, up to 16 rows, of bf16", "quant_linear, 4 bits, large", ">= 1.5"),
    Goal("quant_linear, 6 bits, the same", "quant_linear, 6 bits, large", ">= 1.4"),
    Goal("quant_linear, the model's shapes", "quant_linear, shapes of the model", ">= 0.9"),
    Goal("curvature and rounding of 36M weights", "seconds of curvature and rounding", "<= 60 s"),
    Goal("QAT, share of an update", "QAT, share of a step", "<= 0.1"),
)
FIRST = ("load",)  # steps whose figure is taken where several measured one: the trained artifact before a synthetic one


def reached(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each goal: goal, limit, measured (None: not yet), met, step."""
    facts = {name: record.get("facts") for name, record in results.items() if record.get("ok")}
    bars = {name: found.get("bars", {}) for name, found in facts.items() if isinstance(found, dict)}
    ordered = sorted(bars, key=lambda name: name not in FIRST)
    rows = []
    for goal in GOALS:
        step = next((name for name in ordered if goal.bar in bars[name]), None)
        bar = {"measured": None, "met": None} if step is None else bars[step][goal.bar]
        told = {"measured": bar["measured"], "met": bar["met"], "step": step}
        rows.append({"goal": goal.words, "limit": goal.limit} | told)
    return rows


def table(rows: list[dict[str, Any]], *, toy: bool) -> list[str]:
    """The rows as lines of one width; toy: figures of a dry run, which mean nothing."""
    width = max(len(row["goal"]) for row in rows)
    words = {None: "not measured", True: "met", False: "missed"}
    lines = [f"{'goal':<{width}}  {'limit':>8}  {'measured':>9}"]
    for row in rows:
        figure = "" if row["measured"] is None else f"{row['measured']:.3g}"
        verdict = "of a toy" if toy and figure else words[row["met"]]
        lines.append(f"{row['goal']:<{width}}  {row['limit']:>8}  {figure:>9}  {verdict}")
    return lines
