"""Which tokens are scored together: windows over a stream or within documents, and batches of equal windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import UsageError


@dataclass(frozen=True)
class Window:
    """Inputs tokens[start:stop], targets one later; the targets of inputs `scored` to `stop` count."""

    start: int
    scored: int
    stop: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.stop - self.start, self.scored - self.start


def sliding_windows(total: int, seq_len: int, stride: int, starts: NDArray[np.integer] | None = None) -> list[Window]:
    """Windows over `total` targets; the last of a segment may be shorter, so that each target is scored exactly once."""
    if not 1 <= stride <= seq_len:
        raise UsageError(f"stride {stride} must lie between 1 and the sequence length {seq_len}")
    windows = []
    for first, end in segments(total, starts):
        scored = first
        for start in range(first, end, stride):
            stop = min(start + seq_len, end)
            windows.append(Window(start, scored, stop))
            scored = stop
            if stop == end:
                break
    return windows


def chunk_windows(first: int, end: int, seq_len: int, chunk: int) -> Iterator[Window]:
    """Windows that score inputs [first, end) `chunk` at a time, each with the longest context there is.

    The last chunk of a document has the context that a whole one would have, however short it is: where a window begins
    must not depend on where its document ends. Else the start of the next document is predicted by who knows that it
    comes, and the probabilities do not sum to 1; the audit found just that.
    """
    for scored in range(first, end, chunk):
        yield Window(max(first, scored + chunk - seq_len), scored, min(scored + chunk, end))


def segments(total: int, starts: NDArray[np.integer] | None) -> list[tuple[int, int]]:
    """(first, end) of each run of inputs that may see each other; `starts`: ascending positions where a run begins."""
    cuts = [] if starts is None else [int(start) for start in starts if 0 < start < total]
    return list(zip([0, *cuts], [*cuts, total], strict=True))


def batches_of_equal_shape(windows: list[Window], batch_size: int) -> Iterator[list[Window]]:
    """Windows of equal shape, at most `batch_size` together; the longest first, so that memory runs out at once."""
    by_shape: dict[tuple[int, int], list[Window]] = {}
    for window in windows:
        by_shape.setdefault(window.shape, []).append(window)
    for _, same in sorted(by_shape.items(), key=lambda item: (-item[0][0], item[0][1])):
        for first in range(0, len(same), batch_size):
            yield same[first : first + batch_size]
