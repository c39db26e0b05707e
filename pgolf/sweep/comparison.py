"""What a sweep's points say: the Pareto set, bytes at equal BPB and BPB at equal bytes. Pure functions of JSON.

Between two measured points the rise of the BPB over the unquantized model is taken as a power of the bytes (a straight
line in logarithms), because halving the step quarters the rise. Where a rise is not above zero, noise has taken over and
the line is straight in BPB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

BEYOND = 1.25  # of the measured bytes: so far the last line goes on


@dataclass(frozen=True)
class CurveValue:
    """A figure read off a curve; extrapolated: beyond the measured range."""

    value: float
    extrapolated: bool


def measured(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The points that have figures."""
    return [p for p in points if p.get("bpb") is not None]


def pareto(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of the points that no other beats in both bytes and BPB, the smallest first."""
    keys, best = [], math.inf
    for p in sorted(measured(points), key=lambda p: (p["bytes"], p["bpb"])):
        if p["bpb"] < best:
            keys.append(p["key"])
            best = p["bpb"]
    return keys


def rise_at(curve: Sequence[tuple[float, float]], num_bytes: float) -> CurveValue | None:
    """The rise at `num_bytes` on a curve of (bytes, rise); None where it is too far from what was measured."""
    curve = _ascending(curve)
    if not curve or not curve[0][0] / BEYOND <= num_bytes <= curve[-1][0] * BEYOND:
        return None
    if exact := [rise for size, rise in curve if size == num_bytes]:
        return CurveValue(exact[0], False)
    if len(curve) < 2:
        return None
    (x0, y0), (x1, y1) = next((pair for pair in pairwise(curve) if num_bytes <= pair[1][0]), (curve[-2], curve[-1]))
    share = math.log(num_bytes / x0) / math.log(x1 / x0)
    outside = not curve[0][0] <= num_bytes <= curve[-1][0]
    try:
        return CurveValue(_between(y0, y1, share), outside)
    except OverflowError:  # two sizes are all but equal, their rises are not
        return None


def bytes_at(curve: Sequence[tuple[float, float]], rise: float) -> CurveValue | None:
    """The bytes at which a curve of (bytes, rise) reaches `rise`; None where it is too far from what was measured."""
    curve = _ascending(curve)
    if exact := [size for size, y in curve if y == rise]:
        return CurveValue(exact[0], False)
    for (x0, y0), (x1, y1) in pairwise(curve):
        if min(y0, y1) <= rise <= max(y0, y1):
            return CurveValue(x0 * (x1 / x0) ** _share(y0, y1, rise), False)
    if len(curve) < 2:
        return None
    above = rise > curve[0][1]  # a larger rise than any: fewer bytes than any
    (x0, y0), (x1, y1) = curve[:2] if above else curve[-2:]
    if y0 <= y1 or (min(y0, y1) > 0) != (rise > 0 and min(y0, y1) > 0):
        return None
    octaves = math.log2(x1 / x0) * _share(y0, y1, rise)  # beyond all bounds where two rises are all but equal
    lowest, highest = (math.log2(size / x0) for size in (curve[0][0] / BEYOND, curve[-1][0] * BEYOND))
    return CurveValue(x0 * 2.0**octaves, True) if lowest <= octaves <= highest else None


def _ascending(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """By bytes, the smallest rise where several points have the same bytes."""
    return sorted({size: rise for size, rise in sorted(curve, reverse=True)}.items())


def _between(y0: float, y1: float, share: float) -> float:
    if y0 > 0 and y1 > 0:
        return y0 * math.pow(y1 / y0, share)
    return y0 + share * (y1 - y0)


def _share(y0: float, y1: float, y: float) -> float:
    if y0 == y1:
        return 0.0
    if y0 > 0 and y1 > 0 and y > 0:
        span = math.log(y1 / y0)
        return math.log(y / y0) / span if span else 0.0
    return (y - y0) / (y1 - y0)


def comparison(points: Sequence[Mapping[str, Any]], baseline: str, before: float) -> list[dict[str, Any]]:
    """For every point of the series `baseline` and every other series, the two numbers that matter.

    before: BPB of the unquantized model. A number that cannot be read off the curve is None.
    """
    known = measured(points)
    rows = []
    for series in dict.fromkeys(p["series"] for p in known if p["series"] != baseline):
        curve = [(p["bytes"], p["bpb"] - before) for p in known if p["series"] == series]
        for ref in (p for p in known if p["series"] == baseline):
            rows.append(_row(series, curve, ref, before))
    return rows


def _row(series: str, curve: list[tuple[float, float]], ref: Mapping[str, Any], before: float) -> dict[str, Any]:
    rise = ref["bpb"] - before
    size, mine = bytes_at(curve, rise), rise_at(curve, ref["bytes"])
    return {
        "series": series,
        "baseline": ref["label"],
        "baseline_bytes": ref["bytes"],
        "baseline_bpb": ref["bpb"],
        "baseline_rise": rise,
        "bytes_at_equal_bpb": size and round(size.value),
        "bytes_ratio": size and size.value / ref["bytes"],
        "bytes_extrapolated": bool(size and size.extrapolated),
        "bpb_at_equal_bytes": mine and before + mine.value,
        "rise_at_equal_bytes": mine and mine.value,
        "rise_ratio": mine.value / rise if mine and rise > 0 else None,
        "bpb_extrapolated": bool(mine and mine.extrapolated),
    }
