"""What a closed loop has done so far, kept in a file beside the artifact, so that a broken pack goes on where it was.

The file is the loop's alone: a torch.save of tensors and numbers, read back without running anything of its pickle. Where
it belongs to another pack, or is damaged, the loop begins anew.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pgolf.common.files import replacing
from pgolf.fitting.work import key_of

SUFFIX = ".tuning"  # after the artifact's name
EVERY = 30.0  # seconds of work that are worth a file


def path_for(artifact: Path) -> Path:
    """Where the work on an artifact is kept."""
    return artifact.with_name(artifact.name + SUFFIX)


@dataclass
class Work:
    """path: None keeps nothing. key: of `fitting.work.key_of`. gone_on: whether something kept was found."""

    path: Path | None
    key: str = ""
    gone_on: bool = False
    _kept: float = field(default_factory=time.monotonic)

    def keep(self, state: Callable[[], dict[str, Any]]) -> None:
        """Write how far the loop is, if there was enough work since it was last written. A full disk keeps nothing."""
        if self.path is None or time.monotonic() - self._kept < EVERY:
            return
        try:
            with replacing(self.path) as file:
                now = state()
                torch.save({"key": self.key, "sum": key_of(_parts(now)), "state": now}, file)
        except OSError:
            self.remove()
        self._kept = time.monotonic()

    def kept(self) -> dict[str, Any] | None:
        """How far a loop with this key had come; None where there is none."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            whole = found["key"] == self.key and found["sum"] == key_of(_parts(found["state"]))
            state: dict[str, Any] | None = found["state"] if whole else None
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError):
            return None
        self.gone_on = state is not None
        return state

    def remove(self) -> None:
        """Nobody needs it any more."""
        if self.path is not None:
            with suppress(OSError):  # a folder of somebody else's may have the name
                self.path.unlink()


def _parts(state: Any) -> Iterator[object]:
    """Everything in nested dicts and lists, one after the other: torch.load itself checks no sum."""
    if isinstance(state, dict):
        state = [part for pair in state.items() for part in pair]
    if isinstance(state, list):
        for each in state:
            yield from _parts(each)
    else:
        yield state
