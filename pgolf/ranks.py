"""What pgolf does in a job of several processes: rank 0 packs for all, and curvature is summed over the ranks.

What will surprise you:
* A failure on one rank is told to every rank before anything else is exchanged: all raise, none waits for ever.
* Without an initialised process group of more than one rank nothing of torch.distributed is touched.
* NCCL moves GPU memory only, so sums that live on the CPU visit the rank's GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from pgolf.errors import PgolfError
from pgolf.quant.curvature import SIDES, Curvature, Key, Sums

Result = TypeVar("Result")


def grouped() -> bool:
    """Whether this process works together with others."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """This process's number, 0 where it is alone."""
    return distributed.get_rank() if grouped() else 0


def on_first(work: Callable[[], Result]) -> Result:
    """What `work` returns on rank 0, on every rank; the others wait. What it raises is raised on every rank."""
    if not grouped():
        return work()
    result, error = _tried(work) if rank() == 0 else (None, None)
    message = [(result, _told(error))]
    distributed.broadcast_object_list(message, src=0)
    if error is not None:
        raise error
    result, told = message[0]
    if told is not None:
        raise told
    return result  # type: ignore[return-value]


def summed(collect: Callable[[], Curvature]) -> Curvature:
    """The curvature over all ranks' tokens, the same on every rank; where one fails, all raise."""
    if not grouped():
        return collect()
    mine, error = _tried(collect)
    heads: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(heads, (None if mine is None else _head(mine), _told(error)))
    if error is not None:
        raise error
    failed = [(i, told) for i, (_, told) in enumerate(heads) if told is not None]
    if failed:
        raise type(failed[0][1])(f"rank {failed[0][0]}: {failed[0][1]}")
    assert mine is not None
    first, *others = [head for head, _ in heads]
    total = first.merge(others)  # everything but the matrices: those are added where they are
    for key in sorted(total.sums):
        for side in SIDES:
            _add_up(total, mine, key, side)
    return total


def _tried(work: Callable[[], Result]) -> tuple[Result | None, BaseException | None]:
    try:
        return work(), None
    except BaseException as error:  # an interrupt, too, must not leave the others waiting
        return None, error


def _told(error: BaseException | None) -> PgolfError | None:
    """The error as the other ranks raise it."""
    if error is None or isinstance(error, PgolfError):
        return error
    return PgolfError(f"another rank failed ({type(error).__name__}: {' '.join(str(error).split())[:160]})")


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
    size = total.shapes[key.name][-2 if side.endswith("rows") else -1]
    value = getattr(mine.sums.get(key, Sums()), side)
    value = torch.zeros([size] * len(stand_in)) if value is None else value
    setattr(total.sums[key], side, _all_reduced(value))


def _all_reduced(value: Tensor) -> Tensor:
    """The sum over the ranks, on the CPU."""
    shared = value.clone(memory_format=torch.contiguous_format)
    if distributed.get_backend() == "nccl":
        shared = shared.to(torch.device("cuda", torch.cuda.current_device()))
    distributed.all_reduce(shared)
    return shared.cpu()
