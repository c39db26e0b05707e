"""One training run as its log tells it, whoever wrote the log."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


@dataclass
class Run:
    """points: (step, milliseconds, training loss in nats, validation BPB), NaN for what a line does not say. settings: numbers
    that the log states, by the names of `logs.SETTINGS`. scores: BPB by kind: post_ema, quantized, sliding, ttt. total: steps
    done, where the log says that training is over; broken: step of the first loss that is no number."""

    name: str
    points: list[tuple[float, float, float, float]] = field(default_factory=list)
    settings: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    size: int | None = None
    total: int | None = None
    broken: int | None = None
    nats: float = math.nan  # BPB of one nat a token: a constant of tokenizer and validation text
    notes: list[str] = field(default_factory=list)
    _array: Points | None = field(default=None, init=False, repr=False, compare=False)
    _arrayed: int = field(default=0, init=False, repr=False, compare=False)  # points that are in it

    @property
    def array(self) -> Points:
        """float64 [points, 4], in the order of steps; of points of one step the last of each column. Points are only ever added:
        it is made again where there are more of them."""
        if self._array is None or self._arrayed != len(self.points):
            self._array, self._arrayed = self._merged(), len(self.points)
        return self._array

    def _merged(self) -> Points:
        merged: dict[float, list[float]] = {}
        for step, *values in self.points:
            row = merged.setdefault(step, [math.nan] * 3)
            for at, value in enumerate(values):
                if math.isfinite(value):
                    row[at] = value
        return np.array([[step, *merged[step]] for step in sorted(merged)], np.float64).reshape(-1, 4)

    @property
    def step(self) -> int:
        """The step that it has reached."""
        return int(max((point[0] for point in self.points), default=0))

    @property
    def milliseconds(self) -> float:
        """Of training so far; NaN where the log has no times."""
        times = [point[1] for point in self.points if math.isfinite(point[1])]
        return max(times, default=math.nan)

    @property
    def final(self) -> float:
        """The score after packing that counts: the smallest of the quantized ones; NaN before there is one."""
        kinds = ("quantized", "sliding", "ttt")
        return min((self.scores[kind] for kind in kinds if kind in self.scores), default=math.nan)

    @property
    def unpacked(self) -> float:
        """BPB before quantization, of averaged weights where the log has it; NaN before the end."""
        if "post_ema" in self.scores:
            return self.scores["post_ema"]
        last = [bpb for step, _, _, bpb in self.points if math.isfinite(bpb) and self.total and step >= self.total]
        return last[-1] if last else math.nan

    def until(self, step: int) -> Run:
        """The run as it was when it reached `step`: nothing later is known."""
        if step >= self.step and self.total is None:
            return self
        points = [point for point in self.points if point[0] <= step]
        broken = self.broken if self.broken is not None and self.broken <= step else None
        return replace(self, points=points, scores={}, size=None, total=None, broken=broken)
