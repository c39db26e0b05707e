"""What a closed loop has done so far, kept in a file beside the artifact, so that a broken pack goes on where it was.

The file is the loop's alone: a torch.save of tensors and numbers, read back without running anything of its pickle. Where
it belongs to another pack, or is damaged, the loop begins anew.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pgolf.common.files import replacing

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
                torch.save({"key": self.key, "state": state()}, file)
        except OSError:
            self.remove()
        self._kept = time.monotonic()

    def kept(self) -> dict[str, Any] | None:
        """How far a loop with this key had come; None where there is none."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            state: dict[str, Any] | None = found["state"] if found["key"] == self.key else None
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError):
            return None
        self.gone_on = state is not None
        return state

    def remove(self) -> None:
        """Nobody needs it any more."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
