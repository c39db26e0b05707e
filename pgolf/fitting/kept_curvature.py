"""The curvature of a pack that was broken off, kept in its work folder: the same line does not calibrate again.

It is kept where measuring it took a while, under a fingerprint of all that it comes from, and removed with the pack's success.
Sums are kept, not their means, so that what is read back makes the same bytes. Ranks of a job keep none: all would have to
find it, or none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import pgolf
from pgolf.common import ranks
from pgolf.errors import CurvatureError
from pgolf.fitting.work import CURVATURE, folder_for, key_of
from pgolf.quant.curvature.store import Curvature

WORTH = 20.0  # seconds of measuring from which the result is kept
NOTE = "its curvature was measured before a break"


@dataclass(frozen=True)
class KeptCurvature:
    """A file in the work folder of an artifact."""

    path: Path

    @staticmethod
    def beside(artifact: Path, parts: Iterable[object]) -> KeptCurvature:
        """Of what comes from these parts: weights, text, settings, as `work.key_of` tells them apart."""
        key = key_of([pgolf.__version__, torch.__version__, np.__version__, *parts])
        return KeptCurvature(folder_for(artifact) / f"{CURVATURE}{key[:32]}.safetensors")

    def or_measured(self, measure: Callable[[], Curvature]) -> Curvature:
        """What was kept, with a note that says so; else what `measure` returns, kept where that took long."""
        if ranks.grouped():
            return measure()
        if self.path.is_file():
            with suppress(CurvatureError):  # a damaged file is measured anew
                found = Curvature.load(self.path)
                found.notes.append(NOTE)
                return found
        began = time.perf_counter()
        found = measure()
        if time.perf_counter() - began >= WORTH:
            self._keep(found)
        return found

    def _keep(self, found: Curvature) -> None:
        """Beside what else is kept of this pack, in place of another text's; on a full disk nothing is."""
        with suppress(OSError, CurvatureError):
            self.path.parent.mkdir(exist_ok=True)
            for other in self.path.parent.glob(f"{CURVATURE}*"):
                other.unlink()
            found.save(self.path)

    def remove(self) -> None:
        """Nobody needs it any more."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()
