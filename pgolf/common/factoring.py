"""Factors and triangular systems on a GPU, one thread at a time: torch loads its library for them at the first call of any
thread, which ends in an error where two come at once (pytorch#90613), and promises nothing of later ones.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from threading import Lock

from torch import Tensor

LOCK = Lock()


def factoring(A: Tensor) -> AbstractContextManager[object]:
    """Around every call of torch.linalg that factors or solves with A; on a CPU it keeps nobody waiting."""
    return nullcontext() if A.device.type == "cpu" else LOCK
