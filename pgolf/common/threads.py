"""Plain threads over independent pieces of work: the results never depend on how many threads there are.

Only numpy calls and compiled loops that let go of the interpreter lock gain anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def workers() -> int:
    """Cores that this process may use: its part of the machine's, where torchrun started several there."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def on_threads(function: Callable[..., Result], *arguments: Iterable[object]) -> list[Result]:
    """[function(a, b, ...) for a, b, ... in zip(*arguments)], several at a time. Raises what `function` raises."""
    count = workers()
    if count == 1:
        return [function(*each) for each in zip(*arguments, strict=True)]
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(function, *each) for each in zip(*arguments, strict=True)]
        return [future.result() for future in futures]
