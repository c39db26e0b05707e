"""The points that a sweep is asked for: methods at sizes, and a baseline to compare them with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pgolf.sweep.points import Point, points_of


def wanted_points(
    methods: str,
    *,
    weights: int,
    budgets: Iterable[int] = (),
    bits: Iterable[float] = (),
    coders: Sequence[str] = ("rans",),
    baseline: str | None = None,
    tune: int | None = None,
) -> tuple[list[Point], str | None]:
    """Every point to measure, and the series that the others are compared with.

    methods, coders: as `points_of` reads them. budgets: sizes in bytes; bits: in bits a weight of a model of `weights`.
    baseline: a method, measured too, with the first coder. tune: as there. Raises UsageError.
    """
    sizes = [*budgets, *(int(size * weights / 8) for size in bits)]
    points = points_of(methods, sizes, coders=coders, tune=tune)
    if baseline is None:
        return points, None
    wanted = points_of(baseline, sizes, coders=coders[:1], tune=tune)
    more = [p for p in wanted if p.series not in {q.series for q in points}]
    return points + more, wanted[0].series
