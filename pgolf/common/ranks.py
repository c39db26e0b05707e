"""What pgolf does in a job of several processes: what one of them does alone, and how the others wait.

Without an initialised process group of more than one rank nothing of torch.distributed is touched.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from pgolf.errors import PgolfError

Result = TypeVar("Result")

PATIENCE = timedelta(days=7)  # a job's own groups give up after minutes, and NCCL's watchdog kills it then
TOLD = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "TORCHELASTIC_RUN_ID",
)  # what tells a process of its job
_alone = Event()
_waiting: list[weakref.ref[Any]] = []  # the job's group of all ranks, and ours of the same; torch holds both


def grouped() -> bool:
    """Whether this process works together with others."""
    if _alone.is_set():
        return False
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """This process's number, 0 where it is alone."""
    return distributed.get_rank() if grouped() else 0


def size() -> int:
    """How many processes work together, 1 where this one is alone."""
    return distributed.get_world_size() if grouped() else 1


@contextmanager
def alone() -> Iterator[None]:
    """Work as if there were no job, in this process and in those that it starts, while the other ranks wait elsewhere."""
    told = {name: os.environ.pop(name) for name in TOLD if name in os.environ}
    _alone.set()
    try:
        yield
    finally:
        _alone.clear()
        os.environ.update(told)


def on_first(work: Callable[[], Result]) -> Result:
    """What `work` returns on rank 0, on every rank; the others wait. What it raises is raised on every rank.

    A failure is told to every rank before anything else is exchanged: all raise, none waits for ever.
    """
    if not grouped():
        return work()
    group = patient_group()  # made before rank 0 is busy: all have to be there
    result, error = tried(work) if rank() == 0 else (None, None)
    message = [(result, told(error))]
    distributed.broadcast_object_list(message, src=0, group=group)
    if error is not None:
        raise error
    result, failure = message[0]
    if failure is not None:
        raise relayed(failure)
    return result  # type: ignore[return-value]  # a Result, as there was no failure


def from_all(work: Callable[[], Result]) -> list[Result]:
    """What `work` returns on each rank, on every rank. Where one fails all raise: it its own error, the others the first's."""
    if not grouped():
        return [work()]
    mine, error = tried(work)
    found: list[Any] = [None] * size()
    distributed.all_gather_object(found, (mine, told(error)), group=patient_group())
    if error is not None:
        raise error
    for number, (_, failure) in enumerate(found):
        if failure is not None:
            raise relayed(type(failure)(f"rank {number}: {failure}"))
    return [result for result, _ in found]


def total(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sum of an array over the ranks, in place, on every rank."""
    if grouped():
        distributed.all_reduce(torch.from_numpy(array), group=patient_group())
    return array


def patient_group() -> Any:
    """A group of all ranks in which one may be waited for as long as it takes, made once; None, the job's own, without gloo.

    It talks over TCP: a rank that dies ends the others' waiting at once.
    """
    if not distributed.is_gloo_available():
        return None
    everybody = distributed.group.WORLD
    known, ours = (each() for each in _waiting) if _waiting else (None, None)
    if ours is None or known is not everybody:
        ours = distributed.new_group(backend="gloo", timeout=PATIENCE)
        _waiting[:] = weakref.ref(everybody), weakref.ref(ours)  # one kept beyond its end aborts the process
    return ours


def tried(
    work: Callable[[], Result], kinds: type[BaseException] = BaseException
) -> tuple[Result | None, BaseException | None]:
    """(what `work` returns, None), or (None, what it raises of these kinds)."""
    try:
        return work(), None
    except kinds as error:  # an interrupt, too, must not leave the others waiting
        return None, error


def told(error: BaseException | None) -> PgolfError | None:
    """The error as the other ranks raise it."""
    if error is None or isinstance(error, PgolfError):
        return error
    return PgolfError(f"another rank failed ({type(error).__name__}: {' '.join(str(error).split())[:160]})")


def relayed(error: PgolfError) -> PgolfError:
    """An error of another rank, which alone prints it."""
    error.told_elsewhere = True
    return error
