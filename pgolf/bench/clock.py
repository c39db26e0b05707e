"""How long work takes, on the wall clock or between events of the GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from pgolf.kernels import graphs

FLUSH_BYTES = 1 << 28  # written to empty the second-level cache

Work = Callable[[], Any]


def seconds(work: Work, repeats: int = 5) -> float:
    """Median wall clock after a first run; of that run where there are no repeats."""
    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:] or taken)


def wait() -> None:
    """Until the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Work, *, graph: bool, cold: bool, repeats: int = 30) -> float:
    """Median seconds of `work` on the GPU, between events. graph: as a CUDA graph; cold: with an empty cache.

    Without a GPU, of one run on the wall clock: enough for a toy.
    """
    if not torch.cuda.is_available():
        return seconds(work, repeats=0)
    for _ in range(3):
        work()
    if graph:
        work = graphs.captured(work, torch.device("cuda", torch.cuda.current_device())).replay
    flush = torch.empty(FLUSH_BYTES if cold else 0, dtype=torch.int8, device="cuda")
    taken = []
    for _ in range(repeats):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch has no types there
        torch.cuda._sleep(200_000)  # type: ignore[no-untyped-call]  # the launch is under way before the device is free: only its own time counts
        begin.record()
        work()
        end.record()
        end.synchronize()
        taken.append(float(begin.elapsed_time(end)) / 1e3)
    return statistics.median(taken)


def hot_and_cold(work: Work) -> dict[str, float]:
    """Seconds hot and cold, eager and in a graph.

    "hot" repeats a call on the same memory; "cold" empties the cache before each. A model's weights are read once a token,
    so cold is what generation sees; small weights stay in the cache, so both are measured.
    """
    return {
        f"{'cold' if cold else 'hot'}_{'graph' if graph else 'eager'}": timed(work, graph=graph, cold=cold)
        for cold in (False, True)
        for graph in (False, True)
    }
