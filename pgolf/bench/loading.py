"""From file to weights on the device, beside the general compressors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgolf.bench import clock
from pgolf.bench.sizes import Sizes
from pgolf.loading import dense
from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import Entry
from pgolf.packer.plane import Plane, Scale


def synthetic(path: Path, sizes: Sizes, coder: str = "rans") -> Path:
    """An artifact of contest shapes: Gaussian codes of about 3.5 bits, spread by row and column, never trained."""
    rng = np.random.default_rng(0)
    shapes = {f"blocks.{i}.{j}": shape for i in range(sizes.layers) for j, shape in enumerate(sizes.shapes)}
    entries = {}
    for name, shape in {**shapes, "tok_emb": sizes.embedding}.items():
        row, col = (np.exp2(rng.normal(0, 0.4, n)) for n in shape)
        codes = np.rint(3 * rng.normal(0, 1, shape) * row[:, None] * col).astype(np.int32)
        planes = (Plane(codes, Scale.nearest(0.01 / row, 8), Scale.nearest(1 / col, 8)),)
        entries[name] = Entry("bfloat16", shape, planes, note="synthetic")
    artifact.write(path, artifact.encode(entries, coder=coder).data)
    return path


def loading(path: Path, device: torch.device) -> dict[str, Any]:
    """Seconds from file to weights on the device: ours, and the same tensors coded by brotli.

    first_seconds: of the process's first load, with whatever has to be compiled, and the device's own start; first_use: of
    two fresh processes' (None where nothing is compiled), which `first_use` tells apart.
    """
    began = time.perf_counter()
    dense.load(path, device)
    clock.wait()
    first = time.perf_counter() - began
    entries, _ = dense.read(path)
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "brotli.pgolf"
        artifact.write(other, artifact.encode(entries, coder="brotli").data)
        seconds = {
            "rans": clock.seconds(lambda: dense.load(path, device)),
            "brotli": clock.seconds(lambda: dense.load(other, device)),
        }
        sizes = {"rans": path.stat().st_size, "brotli": other.stat().st_size}
        lrzip = _lrzip(entries, Path(folder))
    fresh = first_use(path, device) if device.type == "cuda" else None
    weights = sum(int(np.prod(entry.shape)) for entry in entries.values() if entry.alias is None)
    return {"weights": weights, "bytes": sizes, "first_seconds": first, "first_use": fresh,
        "seconds": seconds, "lrzip": lrzip}  # fmt: skip


FIRST = """
import sys, time, torch
from pgolf.loading import dense
device = torch.device(sys.argv[2])
torch.zeros(1, device=device)
began = time.perf_counter()
dense.load(sys.argv[1], device)
if device.type == "cuda":
    torch.cuda.synchronize()
print(time.perf_counter() - began)
"""


def first_use(path: Path, device: torch.device) -> dict[str, float]:
    """Seconds of the first load of a process, its device started: "compiled", where no kernel was ever compiled here, and
    "kept", where an earlier process left them in Triton's cache on disk, as one does by default."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for name in ("compiled", "kept"):
            line = [sys.executable, "-c", FIRST, str(path), str(device)]
            environment = os.environ | {"TRITON_CACHE_DIR": folder}
            done = subprocess.run(line, env=environment, check=True, capture_output=True, text=True)
            found[name] = float(done.stdout)
    return found


def _lrzip(entries: Mapping[str, Entry], folder: Path) -> dict[str, Any]:
    """What the contest's entries used: seconds to unpack the codes, where the program is installed."""
    program = shutil.which("lrzip")
    if program is None:
        return {"missing": "lrzip is not installed"}
    raw, packed_codes = folder / "codes", folder / "codes.lrz"
    planes = [plane for entry in entries.values() for plane in entry.planes or ()]
    raw.write_bytes(b"".join(plane.codes.astype(np.int8).tobytes() for plane in planes))
    subprocess.run([program, "-z", "-q", "-f", "-o", packed_codes, raw], check=True, capture_output=True)
    began = time.perf_counter()
    back = [program, "-d", "-q", "-f", "-o", str(folder / "again"), str(packed_codes)]
    subprocess.run(back, check=True, capture_output=True)
    return {"bytes": packed_codes.stat().st_size, "seconds": time.perf_counter() - began}
