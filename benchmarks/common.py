"""What the benchmarks share: where the real checkpoint lies, what machine this is, which code and command made a result."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GOLF3M = ROOT.parent / "shared" / "data"
RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, Any]:
    """Date, commit, command, device, driver and versions, for the head of every result."""
    import numpy
    import torch

    on_gpu = {"driver": _driver(), "cuda": torch.version.cuda, "triton": _version("triton")}
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "command": command(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        **(on_gpu if torch.cuda.is_available() else {}),
    }


def commit() -> str | None:
    """Of the checkout, with a + where tracked files were changed since; None outside of one."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False) if shutil.which("git") else None
    return done.stdout.strip() if done and done.returncode == 0 else None


def command() -> str:
    """The line that runs now, paths inside the checkout as seen from its root."""
    script, *words = sys.argv
    place = Path(script).resolve()
    name = str(place.relative_to(ROOT)) if place.is_relative_to(ROOT) else place.name
    return shlex.join(["python", name, *(word.removeprefix(f"{ROOT}/") for word in words)])


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
