"""Ctrl-C, and SIGTERM as schedulers send it, as a wish that is granted at a step's end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ECHO = 5.0  # seconds: torchrun sends its processes the signal that the terminal sent them already


@contextmanager
def interrupt_flag(*, echoed: bool = False) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second acts as ever. Only the main thread can catch signals.

    echoed: one signal may come twice, so that a second does nothing for the first ECHO seconds.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    first = 0.0

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal first
        if not flag.is_set():
            first = time.monotonic()
            flag.set()
            if not echoed:
                restore()
        elif time.monotonic() - first > ECHO:
            restore()
            signal.raise_signal(signum)

    for number in previous:
        signal.signal(number, note)
    try:
        yield flag
    finally:
        restore()
