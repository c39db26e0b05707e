"""torch on one thread while several matrices are worked on at a time: results then depend on no number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock, local

import torch

from pgolf.common.threads import workers


class _Guard:
    """Whoever wants torch on one thread, counted: torch keeps one number for a process and another for each thread.

    A thread that starts while somebody is inside finds the 1 that was set for them, so "as before" is what the first
    one in found, whoever leaves last.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._threads_inside = 0
        self._number = 1  # torch's, before the first came in
        self._mine = local()  # .depth of this thread

    def enter(self) -> None:
        self._mine.depth = getattr(self._mine, "depth", 0) + 1
        if self._mine.depth > 1:
            return
        with self._lock:
            before = set_one()
            if self._threads_inside == 0:
                self._number = before
            self._threads_inside += 1

    def leave(self) -> None:
        self._mine.depth -= 1
        if self._mine.depth == 0:
            with self._lock:
                self._threads_inside -= 1
                torch.set_num_threads(self._number)


_GUARD = _Guard()


def set_one() -> int:
    """torch on a single thread from here on, in this thread; how many it had.

    They must be asked for first: a thread that was not asked yet takes the process's number at its first product,
    whatever was set in it before (torch 2.13).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    return before


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on a single thread, and as many as before afterwards, whatever other threads of the process do meanwhile."""
    _GUARD.enter()
    try:
        yield
    finally:
        _GUARD.leave()


@contextmanager
def one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """A pool over the cores, torch kept to one thread per task. After a failure nothing more is begun."""
    with one_thread(), ThreadPoolExecutor(workers(), initializer=set_one) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
