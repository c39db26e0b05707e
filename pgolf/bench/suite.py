"""All measurements one after another, and the bars that they have to meet. Without a GPU only loading is measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pgolf.bench import fitting, kernels, loading, rivals, scored, training
from pgolf.bench.sizes import Sizes

MISSING = "a CUDA device: kernels, evaluation and all bars need one (see benchmarks/gpu.sh)"
MEASURES = (
    "load",
    "limits",
    "rans_decode",
    "dequant",
    "softcap_nll",
    "quant_linear",
    "others",
    "eval",
    "fitting",
    "qat",
)
ON_ANY = ("load", "qat")  # what a processor can be asked for at its real size
LIMITED = {"dequant", "softcap_nll"}  # they are told as shares of the limits

Say = Callable[[str], None]


def measure_all(
    device: torch.device, path: Path | None, sizes: Sizes, progress: Say, only: Sequence[str] = ()
) -> dict[str, Any]:
    """All measurements, JSON-able. path: an artifact to load; None: a synthetic one. only: of MEASURES; (): all.

    On a processor only loading is measured where nothing is named, and of what is named only ON_ANY, unless the sizes
    are a toy's.
    """
    anywhere = device.type == "cuda" or sizes.toy
    wanted = [name for name in MEASURES if name in (only or (MEASURES if anywhere else MEASURES[:1]))]
    possible = [name for name in wanted if anywhere or name in ON_ANY]
    with tempfile.TemporaryDirectory() as folder:
        progress("artifact")
        chosen = path or loading.synthetic(Path(folder) / "synthetic.pgolf", sizes)
        facts = _measured(possible, chosen, device, sizes, progress)
    if device.type == "cuda" or sizes.toy:
        return facts | {"bars": bars(facts, sizes)}
    return facts if only and possible == wanted else facts | {"missing": MISSING}


def _measured(names: Sequence[str], path: Path, device: torch.device, sizes: Sizes, progress: Say) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    measures: dict[str, Callable[[], Any]] = {
        "load": lambda: loading.loading(path, device),
        "limits": lambda: kernels.limits(device, sizes),
        "rans_decode": lambda: kernels.decoding(path, device),
        "dequant": lambda: kernels.dequantizing(device, sizes, facts["limits"]),
        "softcap_nll": lambda: kernels.scoring(device, sizes, facts["limits"]),
        "quant_linear": lambda: kernels.products(device, sizes),
        "others": lambda: rivals.compared(device, sizes),
        "eval": lambda: scored.evaluation(device, sizes),
        "fitting": lambda: fitting.fitting(device, sizes),
        "qat": lambda: training.qat_overhead(device, sizes),
    }
    assert tuple(measures) == MEASURES
    for name, measure in measures.items():
        if name in names or (name == "limits" and LIMITED & set(names)):
            progress(name)
            facts[name] = measure()
    return facts


def bars(facts: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Measured, wanted, met, of what was measured: of times the most, of everything else the least."""
    at_most: dict[str, tuple[float, float]] = {}
    at_least: dict[str, tuple[float, float]] = {}
    if "rans_decode" in facts:
        at_most["seconds to decode 36M codes"] = facts["rans_decode"]["seconds_for_36M"], 5e-3
    if "load" in facts:
        at_most["seconds to load"] = facts["load"]["seconds"]["rans"], 50e-3
    if "fitting" in facts:
        at_most["seconds of curvature and rounding"] = facts["fitting"]["seconds"], 60.0
    if "qat" in facts:
        at_most["QAT, share of a step"] = facts["qat"]["ste"]["overhead"], 0.1
    if "dequant" in facts:
        at_least["dequant, share of a copy"] = facts["dequant"]["torch.int8"]["cold_graph"]["share"], 0.8
    if "quant_linear" in facts:
        at_least |= _of_products(facts["quant_linear"], sizes)
    if "eval" in facts:
        speed = {name: row["tokens_per_second"] for name, row in facts["eval"].items()}
        at_least["evaluation of an artifact against dense"] = speed["artifact"] / speed["dense"], 0.98
        at_least["evaluation, MFU"] = facts["eval"]["artifact"]["mfu"], 0.4
    return {
        name: {"measured": got, "wanted": bar, "met": got <= bar if name in at_most else got >= bar}
        for name, (got, bar) in (at_most | at_least).items()
    }


def _of_products(rows: Sequence[dict[str, Any]], sizes: Sizes) -> dict[str, tuple[float, float]]:
    """The bars of quant_linear, at up to 16 rows of x."""
    few = [row for row in rows if row["inputs"] <= 16]
    large = {b: min(r["cold"]["speedup"] for r in few if r["shape"] == sizes.large and r["bits"] == b) for b in (4, 6)}
    small = min((r["hot"]["speedup"] for r in few if max(r["shape"]) <= 2048), default=float("nan"))
    return {
        "quant_linear, 4 bits, large": (large[4], 1.5),
        "quant_linear, 6 bits, large": (large[6], 1.4),
        "quant_linear, shapes of the model": (small, 0.9),
    }
