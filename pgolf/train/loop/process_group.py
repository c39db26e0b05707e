"""Data parallelism in its plainest form: every rank holds the whole model and gradients are averaged once an update."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process's place among `world` processes."""

    rank: int = 0
    world: int = 1

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their mean over the ranks; they must be alike on all of them.

        One all-reduce of all gradients laid end to end is as exact as DistributedDataParallel, which wants to own the
        model and whose hook on every parameter gets in the way of torch.compile and of accumulation.
        """
        if self.world == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.world
        for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def agree(self, value: float, device: torch.device) -> float:
        """The mean of a number over the ranks, the same on each, so that all decide alike."""
        return self.agree_on([value], device)[0]

    def agree_on(self, values: Sequence[float], device: torch.device) -> list[float]:
        """The same of several numbers at once."""
        if self.world == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=device)
        self.mean_([shared])
        found: list[float] = shared.tolist()
        return found


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """This process's ranks and its own device: a group of processes under `torchrun`, else one alone.

    Without `torchrun` nothing of torch.distributed is touched; a group that is there already is taken as it is.
    """
    if "RANK" not in os.environ:
        yield Ranks(), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if torch.distributed.is_initialized():
        yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size()), device
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size()), device
    finally:
        torch.distributed.destroy_process_group()
