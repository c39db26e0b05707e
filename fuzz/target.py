"""What a target of the fuzzer is, and where readers of files find their input."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fuzz import mutate

Mutator = Callable[[bytes, np.random.Generator], bytes]


@dataclass(frozen=True)
class Target:
    """read: bytes -> what they mean. seeds: honest inputs. mutators: used in turn.

    sealed: checksums cover everything that the mutators touch, so what is still accepted must equal the seed's meaning.
    """

    read: Callable[[bytes], Any]
    seeds: Callable[[], list[bytes]]
    mutators: tuple[Mutator, ...] = (mutate.damaged,)
    sealed: bool = False


def file(name: str) -> Path:
    """One file a process and name, overwritten by every input: readers that map files want a name."""
    path = Path(_keep_alive().name) / name
    path.parent.mkdir(exist_ok=True)
    return path


@cache
def _keep_alive() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="pgolf-fuzz-")


def on_file(name: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    """A reader of bytes from one of files."""

    def run(data: bytes) -> Any:
        path = file(name)
        path.write_bytes(data)
        return read(path)

    return run


def on_text(read: Callable[[str], Any]) -> Callable[[bytes], Any]:
    """A reader of bytes from one of strings."""
    return lambda data: read(data.decode("utf-8", "replace"))
