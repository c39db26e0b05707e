"""Several checkpoints of one model, differing in their training seed: mean, spread, and whether a gain is proven.

The contest accepts a record that wins by 0.005 nats per token at p < 0.01. Here each seed gives one gain, the loss of the
baseline less that of the method at equal bytes on the same checkpoint, so the test is of paired differences: one-sided
Student's t (scipy.stats.ttest_1samp) of "the mean gain is above 0.005".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pgolf.common import extras
from pgolf.errors import UsageError
from pgolf.report import write_json
from pgolf.sweep import comparison

MARGIN = 0.005  # nats per token
LEVEL = 0.01
_AVERAGED = (
    "bytes",
    "bits_per_weight",
    "bpb",
    "rise",
    "loss",
    "loss_rise",
    "kl",
    "kl_rare",
    "same_top",
    "pack_seconds",
)


def over_seeds(found: Sequence[Mapping[str, Any]], names: Sequence[str], out: str | Path) -> dict[str, Any]:
    """One result for many sweeps of the same plan: mean figures, "bpb_spread" and "rise_spread" (standard deviations), "gains".

    found: results of `run.sweep`; names: of their checkpoints; out: the folder whose results.json is written.
    Raises UsageError where the models differ in size.
    """
    if len({r["before"]["weights"] for r in found}) > 1:
        raise UsageError("--seeds compares checkpoints of one model; these differ in their number of weights")
    first = found[0]
    points = [_mean([r["points"][i] for r in found]) for i in range(len(first["points"]))]
    before = _mean([r["before"] for r in found])
    baseline = first["baseline"]
    results = {
        **first,
        "settings": [r["settings"] for r in found],
        "seeds": list(names),
        "before": before,
        "points": points,
        "pareto": comparison.pareto(points),
        "comparison": comparison.comparison(points, baseline, before["bpb"]) if baseline else [],
        "gains": _gains(found) if baseline else [],
    }
    write_json(Path(out) / "results.json", results)
    return results


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first row with its figures averaged; refused if any of them was."""
    refused = next((r for r in rows if "refused" in r), None)
    if refused:
        return dict(refused)
    means = {name: fmean(r[name] for r in rows) for name in _AVERAGED if name in rows[0]}
    if "bytes" in means:
        means["bytes"] = round(means["bytes"])
    spread = {"rise_spread": stdev(r["rise"] for r in rows)} if "rise" in rows[0] else {}
    return {
        **rows[0],
        **means,
        "bpb_spread": stdev(r["bpb"] for r in rows),
        **spread,
        "each": [_figures(r) for r in rows],
    }


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("bytes", "bpb", "loss") if name in row}


def _gains(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For every method and point of the baseline, the gains of all seeds and the test of their mean."""
    rows = []
    for same in zip(*(r["comparison"] for r in found), strict=False):
        gains = [
            (row["baseline_bpb"] - row["bpb_at_equal_bytes"]) * _nats_per_bpb(r["before"])
            for row, r in zip(same, found, strict=True)
            if row["bpb_at_equal_bytes"] is not None
        ]
        if len(gains) == len(found):
            rows.append({"series": same[0]["series"], "baseline": same[0]["baseline"]} | gain_test(gains))
    return rows


def _nats_per_bpb(before: Mapping[str, Any]) -> float:
    return float(before["text_bytes"] / before["tokens"] * math.log(2))


def gain_test(gains: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation, and p of "the mean gain is above 0.005 nats per token", one-sided, by Student's t."""
    extras.need("scipy")
    from scipy import stats

    spread = stdev(gains) if len(gains) > 1 else None
    # without a spread there is nothing to test against
    p = float(stats.ttest_1samp(gains, MARGIN, alternative="greater").pvalue) if spread else None
    mean = fmean(gains)
    return {"gains": list(gains), "mean": mean, "spread": spread, "p": p, "passes": p is not None and p < LEVEL}
