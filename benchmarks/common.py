"""What the benchmarks share: where the real checkpoint lies, what machine this is, how a result is written."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

GOLF3M = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, Any]:
    """Date, device and versions, for the head of every result."""
    import numpy
    import torch

    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
