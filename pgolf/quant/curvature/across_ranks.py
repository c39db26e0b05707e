"""Curvature summed over the ranks of a job.

NCCL moves GPU memory only, so sums that live on the CPU visit the rank's GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, distributed

from pgolf.common import scratch
from pgolf.common.ranks import from_all, grouped
from pgolf.quant.curvature.store import SIDES, Curvature, Key, Sums


def summed(collect: Callable[[], Curvature]) -> Curvature:
    """The curvature over all ranks' tokens, the same on every rank; where one fails, all raise."""
    if not grouped():
        return collect()
    mine: list[Curvature] = []

    def head() -> Curvature:
        mine.append(collect())
        return _head(mine[0])

    first, *others = from_all(head)
    total: Curvature = first.merge(others)  # everything but the matrices: those are added where they are
    for key in sorted(total.sums):
        for side in SIDES:
            _add_up(total, mine[0], key, side)
    return total


def _head(part: Curvature) -> Curvature:
    """The curvature with, in place of each sum, a vector as long as the sum has dimensions: the ranks agree on keys first."""
    sums = {key: Sums(uses=found.uses) for key, found in part.sums.items()}
    for key, found in part.sums.items():
        for side in SIDES:
            value = getattr(found, side)
            setattr(sums[key], side, None if value is None else torch.zeros(value.dim()))
    return Curvature(part.tokens, part.shapes, part.ties, sums, part.used, part.unknown, part.squares, part.batches)


def _add_up(total: Curvature, mine: Curvature, key: Key, side: str) -> None:
    """Replace one side's stand-in by the sum over the ranks; a rank that never met the matrix adds zeros."""
    stand_in = getattr(total.sums[key], side)
    if stand_in is None:
        return
    size = key.length(total.shapes[key.name], side)
    value = getattr(mine.sums.get(key, Sums()), side)
    value = torch.from_numpy(scratch.zeros((size,) * len(stand_in), np.float32)) if value is None else value
    setattr(total.sums[key], side, _all_reduced(value))


def _all_reduced(value: Tensor) -> Tensor:
    """The sum over the ranks, on the CPU; in place where it is there already, for the sums of a large model lie in files."""
    shared = value.cpu().contiguous()
    if distributed.get_backend() == "nccl":
        moved = shared.to(torch.device("cuda", torch.cuda.current_device()))
        distributed.all_reduce(moved)
        return shared.copy_(moved)
    distributed.all_reduce(shared)
    return shared
