"""From file to weights on the device, beside the general compressors."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgolf.bench import clock
from pgolf.loading import dense
from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import Entry
from pgolf.packer.plane import Plane, Scale

SHAPES = {"q": (512, 512), "k": (256, 512), "v": (256, 512), "o": (512, 512), "up": (2048, 512), "down": (512, 2048)}
EMBEDDING = (8192, 512)


def synthetic(path: Path, layers: int, coder: str = "rans") -> Path:
    """An artifact of contest shapes: Gaussian codes of about 3.5 bits, spread by row and column, never trained."""
    rng = np.random.default_rng(0)
    shapes = {f"blocks.{i}.{name}": shape for i in range(layers) for name, shape in SHAPES.items()}
    entries = {}
    for name, shape in {**shapes, "tok_emb": EMBEDDING}.items():
        row, col = (np.exp2(rng.normal(0, 0.4, n)) for n in shape)
        codes = np.rint(3 * rng.normal(0, 1, shape) * row[:, None] * col).astype(np.int32)
        planes = (Plane(codes, Scale.nearest(0.01 / row, 8), Scale.nearest(1 / col, 8)),)
        entries[name] = Entry("bfloat16", shape, planes, note="synthetic")
    artifact.write(path, artifact.encode(entries, coder=coder).data)
    return path


def loading(path: Path, device: torch.device, folder: Path) -> dict[str, Any]:
    """Seconds from file to weights on the device: ours, and the same tensors coded by brotli."""
    entries, _ = dense.read(path)
    other = folder / "brotli.pgolf"
    artifact.write(other, artifact.encode(entries, coder="brotli").data)
    weights = sum(int(np.prod(entry.shape)) for entry in entries.values() if entry.alias is None)
    seconds = {
        "rans": clock.seconds(lambda: dense.load(path, device)),
        "brotli": clock.seconds(lambda: dense.load(other, device)),
    }
    sizes = {"rans": path.stat().st_size, "brotli": other.stat().st_size}
    return {"weights": weights, "bytes": sizes, "seconds": seconds, "lrzip": _lrzip(entries, folder)}


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
