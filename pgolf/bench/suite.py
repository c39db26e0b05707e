"""All measurements one after another, and the bars that they have to meet. Without a GPU only loading is measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pgolf.bench import kernels, loading, scored
from pgolf.bench.sizes import Sizes

MISSING = "a CUDA device: kernels, evaluation and all bars need one (see benchmarks/gpu.sh)"

Say = Callable[[str], None]


def measure_all(device: torch.device, path: Path | None, sizes: Sizes, progress: Say) -> dict[str, Any]:
    """All measurements, JSON-able. path: an artifact to load; None: a synthetic one."""
    with tempfile.TemporaryDirectory() as folder:
        progress("artifact")
        chosen = path or loading.synthetic(Path(folder) / "synthetic.pgolf", sizes.layers)
        facts: dict[str, Any] = {"load": loading.loading(chosen, device, Path(folder))}
        if device.type != "cuda":
            return facts | {"missing": MISSING}
        return facts | on_gpu(chosen, device, sizes, facts["load"], progress)


def on_gpu(path: Path, device: torch.device, sizes: Sizes, load: dict[str, Any], progress: Say) -> dict[str, Any]:
    """What needs a GPU; load: what `loading` measured, for the bars."""
    facts: dict[str, Any] = {}
    measures: dict[str, Callable[[], Any]] = {
        "limits": lambda: kernels.limits(device, sizes),
        "rans_decode": lambda: kernels.decoding(path, device),
        "dequant": lambda: kernels.dequantizing(device, sizes, facts["limits"]),
        "softcap_nll": lambda: kernels.scoring(device, sizes, facts["limits"]),
        "quant_linear": lambda: kernels.products(device, sizes),
        "eval": lambda: scored.evaluation(device, sizes),
    }
    for name, measure in measures.items():
        progress(name)
        facts[name] = measure()
    return facts | {"bars": bars(facts, load["seconds"]["rans"], sizes)}


def bars(facts: dict[str, Any], load_seconds: float, sizes: Sizes) -> dict[str, Any]:
    """Measured, wanted, met: of times the most, of everything else the least."""
    few = [row for row in facts["quant_linear"] if row["inputs"] <= 16]
    large = {b: min(r["cold"]["speedup"] for r in few if r["shape"] == sizes.large and r["bits"] == b) for b in (4, 6)}
    small = min((r["hot"]["speedup"] for r in few if max(r["shape"]) <= 2048), default=float("nan"))
    speed = {name: row["tokens_per_second"] for name, row in facts["eval"].items()}
    at_most = {
        "seconds to decode 36M codes": (facts["rans_decode"]["seconds_for_36M"], 5e-3),
        "seconds to load": (load_seconds, 50e-3),
    }
    at_least = {
        "dequant, share of a copy": (facts["dequant"]["torch.int8"]["cold_graph"]["share"], 0.85),
        "quant_linear, 4 bits, large": (large[4], 1.6),
        "quant_linear, 6 bits, large": (large[6], 1.4),
        "quant_linear, shapes of the model": (small, 0.9),
        "evaluation of an artifact against dense": (speed["artifact"] / speed["dense"], 0.98),
        "evaluation, MFU": (facts["eval"]["artifact"]["mfu"], 0.25),
    }
    return {
        name: {"measured": got, "wanted": bar, "met": got <= bar if name in at_most else got >= bar}
        for name, (got, bar) in (at_most | at_least).items()
    }
