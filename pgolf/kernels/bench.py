"""`pgolf bench`: how fast the kernels are, against what the same GPU does at best in the same run.

What will surprise you:
* Everything is a share: of the bandwidth of a copy, of the rate of a bfloat16 matmul, of torch.matmul on the same shape.
* "hot" repeats a call on the same memory; "cold" empties the second-level cache before each. A model's weights are read
  once a token, so cold is what generation sees; small weights stay in the cache, so both are reported.
* Without a GPU only the loading of an artifact is measured, and the result says what is missing.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgolf import pipeline
from pgolf.kernels import dequant, load, packed, quant_linear, rans_decode, softcap_nll
from pgolf.packer import artifact
from pgolf.packer.artifact import Entry
from pgolf.packer.plane import Plane, Scale

SHAPES = {"q": (512, 512), "k": (256, 512), "v": (256, 512), "o": (512, 512), "up": (2048, 512), "down": (512, 2048)}
LAYERS, EMBEDDING = 11, (8192, 512)
LINEAR = [(512, 512), (256, 512), (2048, 512), (512, 2048), (8192, 512), (4096, 4096), (8192, 8192)]
INPUTS = [1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096]
FLUSH_BYTES = 1 << 28  # written to empty the cache
SEQ_LEN, BATCH = 1024, 32

Progress = Callable[[str], None]
Work = Callable[[], Any]


def run(device: torch.device, path: Path | None, layers: int, peak_tflops: float, progress: Progress) -> dict[str, Any]:
    """All measurements, JSON-able. path: an artifact to load; None: a synthetic one of so many contest layers.

    peak_tflops: dense bfloat16 peak of the device, for MFU.
    """
    with tempfile.TemporaryDirectory() as folder:
        progress("artifact")
        chosen = path or synthetic(Path(folder) / "synthetic.pgolf", layers)
        facts: dict[str, Any] = {"load": loading(chosen, device, Path(folder))}
        if device.type != "cuda":
            return facts | {
                "missing": "a CUDA device: kernels, evaluation and all bars need one (see benchmarks/gpu.sh)"
            }
        progress("limits")
        facts["limits"] = limits(device)
        for name, measure in (("rans_decode", decoding), ("dequant", dequantizing)):
            progress(name)
            facts[name] = measure(chosen, device, facts["limits"])
        progress("softcap_nll")
        facts["softcap_nll"] = scoring(device, facts["limits"])
        facts["quant_linear"] = products(device, progress)
        progress("eval")
        facts["eval"] = evaluation(device, peak_tflops)
    return facts | {"bars": bars(facts)}


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
    entries, _ = pipeline.read(path)
    other = folder / "brotli.pgolf"
    artifact.write(other, artifact.encode(entries, coder="brotli").data)
    weights = sum(int(np.prod(entry.shape)) for entry in entries.values() if entry.alias is None)
    seconds = {"rans": _seconds(lambda: load.load(path, device)), "brotli": _seconds(lambda: load.load(other, device))}
    sizes = {"rans": path.stat().st_size, "brotli": other.stat().st_size}
    return {"weights": weights, "bytes": sizes, "seconds": seconds, "lrzip": _lrzip(entries, folder)}


def _seconds(work: Work, repeats: int = 5) -> float:
    """Median wall clock after a first run."""
    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        _wait()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _lrzip(entries: Mapping[str, Entry], folder: Path) -> dict[str, Any]:
    """What the contest's entries used: seconds to unpack the codes, where the program is installed."""
    import shutil
    import subprocess

    program = shutil.which("lrzip")
    if program is None:
        return {"missing": "lrzip is not installed"}
    raw = folder / "codes"
    raw.write_bytes(
        b"".join(np.asarray(p.codes).astype(np.int8).tobytes() for e in entries.values() for p in e.planes or ())
    )
    subprocess.run([program, "-z", "-q", "-f", "-o", folder / "codes.lrz", raw], check=True)
    back = [program, "-d", "-q", "-f", "-o", folder / "again", folder / "codes.lrz"]
    seconds = _seconds(lambda: subprocess.run(back, check=True), repeats=1)
    return {"bytes": (folder / "codes.lrz").stat().st_size, "seconds": seconds}


def timed(work: Work, *, graph: bool, cold: bool, repeats: int = 30) -> float:
    """Median seconds of `work` on the GPU, between events. graph: as a CUDA graph; cold: with an empty cache."""
    for _ in range(3):
        work()
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            work()
        work = captured.replay
    flush = torch.empty(FLUSH_BYTES if cold else 0, dtype=torch.int8, device="cuda")
    taken = []
    for _ in range(repeats):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(200_000)  # the launch is under way before the device is free: only its own time counts
        begin.record()
        work()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(taken)


def _four(work: Work) -> dict[str, float]:
    """Seconds hot and cold, eager and in a graph."""
    return {
        f"{'cold' if cold else 'hot'}_{'graph' if graph else 'eager'}": timed(work, graph=graph, cold=cold)
        for cold in (False, True)
        for graph in (False, True)
    }


def limits(device: torch.device) -> dict[str, float]:
    """What the device does at best: bytes a second of a copy, read and written, and bfloat16 operations a second."""
    source = torch.empty(1 << 29, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / timed(lambda: target.copy_(source), graph=False, cold=False)
    a = torch.randn(8192, 8192, dtype=torch.bfloat16, device=device)
    rate = 2 * 8192**3 / timed(lambda: a @ a, graph=False, cold=False)
    return {"copy_bytes_per_second": copied, "matmul_flops": rate}


def decoding(path: Path, device: torch.device, _: dict[str, float]) -> dict[str, Any]:
    """The kernel alone, on the artifact's own stream, for several numbers of lanes a program."""
    streams: list[rans_decode.Stream] = []

    class Kept(load.OnDevice):
        def decode(self, *arguments: Any) -> torch.Tensor:
            streams.append(rans_decode.Stream.of(*arguments, self.device))
            return super().decode(*arguments)

    pipeline.read(path, Kept(device))
    stream = streams[0]
    seconds = {
        block: timed(lambda b=block: rans_decode.launch(stream, b), graph=False, cold=True) for block in (8, 16, 32)
    }
    chosen = rans_decode.lanes_of_a_program(len(stream.states), device)
    symbols = int(stream.starts[-1])
    return {
        "symbols": symbols,
        "lanes": len(stream.states),
        "lanes_of_a_program": chosen,
        "seconds_by_lanes_of_a_program": seconds,
        "seconds": seconds[chosen],
        "seconds_for_36M": seconds[chosen] * 36e6 / symbols,
    }


def dequantizing(_: Path, device: torch.device, best: dict[str, float]) -> dict[str, Any]:
    """Codes of 36M weights to bfloat16, as a share of the copy's bandwidth."""
    rows, cols = 70_000, 512
    row, col = torch.rand(rows, device=device), torch.rand(cols, device=device)
    out = torch.empty(rows, cols, dtype=torch.bfloat16, device=device)
    facts = {}
    for kind in (torch.int8, torch.int16):
        codes = torch.randint(-31, 32, (rows, cols), device=device).to(kind)
        moved = codes.nbytes + out.nbytes + row.nbytes + col.nbytes
        facts[str(kind)] = {
            name: {"seconds": seconds, "share_of_copy": moved / seconds / best["copy_bytes_per_second"]}
            for name, seconds in _four(lambda c=codes: dequant.launch(c, row, col, out)).items()
        }
    return facts


def scoring(device: torch.device, best: dict[str, float]) -> dict[str, Any]:
    """Losses of 8,192 targets: from logits, as a share of the copy's bandwidth, and with the head, of the matmul's rate."""
    logits = torch.randn(8192, 8192, device=device).bfloat16()
    hidden, weight = logits[:, :512].contiguous(), logits[:, 512:1024].contiguous()
    targets = torch.randint(0, 8192, (8192,), device=device)
    alone = _four(lambda: softcap_nll.launch(logits, targets, 30.0))
    headed = _four(lambda: softcap_nll.head_nll(hidden, weight, targets, 30.0))
    return {
        "kernel": {
            n: {"seconds": s, "share_of_copy": logits.nbytes / s / best["copy_bytes_per_second"]}
            for n, s in alone.items()
        },
        "with_head": {
            n: {"seconds": s, "share_of_matmul": 2 * 8192 * 8192 * 512 / s / best["matmul_flops"]}
            for n, s in headed.items()
        },
    }


def products(device: torch.device, progress: Progress) -> list[dict[str, Any]]:
    """quant_linear beside torch.matmul in bfloat16, for each shape, width and number of rows of x."""
    found = []
    for rows, cols in LINEAR:
        progress(f"quant_linear {rows}x{cols}")
        dense = torch.randn(rows, cols, device=device).bfloat16()
        scales = torch.rand(rows, device=device), torch.rand(cols, device=device)
        weights = {
            b: packed.pack(torch.randint(-(1 << (b - 1)), 1 << (b - 1), (rows, cols), device=device), *scales, bits=b)
            for b in packed.WIDTHS
        }
        for inputs in INPUTS:
            x = torch.randn(inputs, cols, device=device).bfloat16()
            reference = {cold: timed(lambda x=x, w=dense: x @ w.T, graph=True, cold=cold) for cold in (False, True)}
            for bits, weight in weights.items():
                mine = {
                    cold: timed(lambda x=x, w=weight: quant_linear.quant_linear(x, w), graph=True, cold=cold)
                    for cold in (False, True)
                }
                found.append(
                    {"shape": [rows, cols], "inputs": inputs, "bits": bits, "hot": mine[False], "cold": mine[True],
                     "matmul_hot": reference[False], "matmul_cold": reference[True],
                     "speedup_hot": reference[False] / mine[False], "speedup_cold": reference[True] / mine[True]}
                )  # fmt: skip
    return found


def evaluation(device: torch.device, peak_tflops: float) -> dict[str, Any]:
    """Tokens a second and MFU of `pgolf eval` on the golf preset: dense, from an artifact, and packed."""
    import pgolf
    from pgolf.quant.logits import logits_of
    from pgolf.quant.settings import Settings
    from pgolf.train import bpb
    from pgolf.train.model import GPT, PRESETS
    from pgolf.train.static import StaticLosses, to_device

    config = PRESETS["golf"]
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 40 * BATCH * SEQ_LEN + 1).astype(np.uint16)
    models = {name: GPT(config) for name in ("dense", "artifact", "packed")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "golf.pgolf"
        pgolf.pack(models["dense"], path, method="sdclip", settings=Settings(bits=6))
        for name in ("artifact", "packed"):
            pgolf.load_module(path, models[name], packed=name == "packed")
    flops = 2 * sum(p.numel() for p in models["dense"].parameters()) + 2 * config.layers * config.dim * SEQ_LEN
    facts = {}
    for name, model in models.items():
        logits = logits_of(to_device(model, device))
        fast = StaticLosses(model, logits, seq_len=SEQ_LEN, batch_size=BATCH)
        began = time.perf_counter()
        bpb.score(logits, tokens, seq_len=SEQ_LEN, batch_size=BATCH, losses=fast, device=device)
        rate = (len(tokens) - 1) / (time.perf_counter() - began - fast.compile_seconds)
        facts[name] = {
            "tokens_per_second": rate,
            "mfu": rate * flops / (peak_tflops * 1e12),
            "compile_seconds": fast.compile_seconds,
        }
    return facts


def bars(facts: dict[str, Any]) -> dict[str, Any]:
    """The issue's bars: measured, wanted, met."""
    linear = facts["quant_linear"]
    large = [r for r in linear if r["shape"] == [8192, 8192] and r["inputs"] <= 16]
    small = [r["speedup_hot"] for r in linear if r["shape"][1] <= 2048 and r["inputs"] <= 16]
    speeds = facts["eval"]
    wanted: dict[str, tuple[float, float]] = {
        "decode of 36M codes, seconds at most": (-facts["rans_decode"]["seconds_for_36M"], -5e-3),
        "load to weights, seconds at most": (-facts["load"]["seconds"]["rans"], -50e-3),
        "dequant, share of a copy": (facts["dequant"]["torch.int8"]["cold_graph"]["share_of_copy"], 0.85),
        "quant_linear 8192², 4 bits, M <= 16": (min(r["speedup_cold"] for r in large if r["bits"] == 4), 1.6),
        "quant_linear 8192², 6 bits, M <= 16": (min(r["speedup_cold"] for r in large if r["bits"] == 6), 1.4),
        "quant_linear on model shapes, M <= 16": (min(small), 0.9),
        "eval of an artifact against dense": (
            speeds["artifact"]["tokens_per_second"] / speeds["dense"]["tokens_per_second"],
            0.98,
        ),
        "eval, MFU": (speeds["artifact"]["mfu"], 0.25),
    }
    return {name: {"measured": abs(got), "wanted": abs(bar), "met": got >= bar} for name, (got, bar) in wanted.items()}
