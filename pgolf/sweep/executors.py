"""Where points run: in this process, in several, or on somebody's Dask cluster. No scheduler of our own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from threading import Thread
from typing import Any

from pgolf.common import extras
from pgolf.errors import PgolfError, UsageError


class InProcess(Executor):
    """Runs a task when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that is already done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def processes(jobs: int) -> Iterator[Executor]:
    """An executor of `jobs` processes, this one alone for 1. What still runs when the block is left early is ended.

    They are spawned, never forked: torch's threads do not survive a fork.
    """
    if jobs == 1:
        yield InProcess()
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _quiet)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    pool.shutdown()


def _quiet() -> None:
    # Ctrl-C goes to every process of a terminal; the parent, which alone writes results, ends the workers, so nobody
    # prints a traceback and no point is half-written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A worker whose parent was killed would wait for work for ever, holding its memory.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def dask(address: str) -> Iterator[Executor]:
    """The executor of a running Dask cluster. Its workers must see the same files under the same names.

    Raises UsageError where nobody answers at `address`.
    """
    extras.need("distributed")
    from distributed import Client

    try:
        client = Client(address, timeout="5s", set_as_default=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(f"--dask {address}: no Dask scheduler answers there ({reason})") from None
    with client:
        yield client.get_executor(pure=False)


@contextmanager
def executor(jobs: int, dask_address: str | None) -> Iterator[Executor]:
    """The executor that the options ask for."""
    with dask(dask_address) if dask_address else processes(jobs) as chosen:
        yield chosen


class WorkerLostError(PgolfError):
    """A process of the sweep was killed from outside."""
