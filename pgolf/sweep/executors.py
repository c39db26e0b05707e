"""Where points run: in this process, in several, on a Dask cluster, or on any executor that the user makes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any

from pgolf.common import extras
from pgolf.errors import ModelError, PgolfError, UsageError
from pgolf.models import usermodel


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


class Processes(Executor):
    """Tasks in `jobs` processes. One that is killed costs its own task, a BrokenExecutor, and another takes its place.

    They are spawned, never forked: torch's threads do not survive a fork. A ProcessPoolExecutor of several would lose all its
    tasks with one process, so each process is one.
    """

    def __init__(self, jobs: int) -> None:
        self._threads = ThreadPoolExecutor(jobs)
        self._idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
        for _ in range(jobs):
            self._idle.put(_process())

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As every executor."""
        return self._threads.submit(self._run, fn, args, kwargs)

    def _run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        process = self._idle.get()
        try:
            return process.submit(fn, *args, **kwargs).result()
        except BrokenExecutor:
            process.shutdown(wait=False)
            process = _process()
            raise
        finally:
            self._idle.put(process)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As every executor; what runs when nobody waits for it is left to whoever ends its process."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        while not self._idle.empty():
            self._idle.get().shutdown(wait)


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _quiet)


@contextmanager
def processes(jobs: int) -> Iterator[Executor]:
    """An executor of `jobs` processes, this one alone for 1. What still runs when the block is left early is ended."""
    if jobs == 1:
        yield InProcess()
        return
    before = set(multiprocessing.active_children())
    pool = Processes(jobs)
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
def theirs(spec: str) -> Iterator[Executor]:
    """What NAME() of FILE.py makes: any concurrent.futures.Executor. Its workers must see the same files under the same names.

    Raises UsageError and ModelError where it makes none.
    """
    try:
        made = usermodel.function(spec, "--executor")()
    except PgolfError:
        raise
    except Exception as error:
        raise ModelError(
            f"--executor {spec}: calling it fails ({type(error).__name__}: {usermodel.one_line(error)})"
        ) from error
    if not isinstance(made, Executor):
        raise ModelError(f"--executor {spec}: makes a {type(made).__name__}, not a concurrent.futures.Executor")
    try:
        yield made
    except BaseException:
        made.shutdown(wait=False, cancel_futures=True)
        raise
    made.shutdown()


@contextmanager
def executor(jobs: int, dask_address: str | None, own: str | None = None) -> Iterator[Executor]:
    """The executor that the options ask for."""
    with theirs(own) if own else dask(dask_address) if dask_address else processes(jobs) as chosen:
        yield chosen


class WorkerLostError(PgolfError):
    """A point took two workers with it, or the executor can give no other."""
