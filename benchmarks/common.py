"""What the benchmarks share: where the real checkpoint lies, what machine this is, how a result is written."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

GOLF3M = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, Any]:
    """Date, device, driver and versions, for the head of every result."""
    import numpy
    import torch

    on_gpu = {"driver": _driver(), "cuda": torch.version.cuda, "triton": _version("triton")}
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        **(on_gpu if torch.cuda.is_available() else {}),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    """Of the first GPU, as nvidia-smi says it."""
    program = shutil.which("nvidia-smi")
    asked = ["--query-gpu=driver_version", "--format=csv,noheader"]
    done = program and subprocess.run([program, *asked], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done and done.returncode == 0 and done.stdout else None
