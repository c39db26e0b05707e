"""`pgolf bench`: how fast the kernels are, against what the same GPU does at best in the same run.

What will surprise you:
* Everything is a share: of the bandwidth of a copy, of the rate of a bfloat16 matmul, of torch.matmul on the same shape.
* "hot" repeats a call on the same memory; "cold" empties the second-level cache before each. A model's weights are read
  once a token, so cold is what generation sees; small weights stay in the cache, so both are reported.
* Without a GPU only the loading of an artifact is measured, and the result says what is missing.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.fitting import packing
from pgolf.kernels import dequant, packed, quant_linear, rans_decode, softcap_nll
from pgolf.loading import dense
from pgolf.loading import on_device as load
from pgolf.loading.modules import load_module
from pgolf.loading.on_device import OnDevice
from pgolf.models.logits import logits_of
from pgolf.packer.coder.layout import CodedLanes
from pgolf.packer.coder.loops import Loops
from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import Entry
from pgolf.packer.plane import Plane, Scale
from pgolf.quant.settings import Settings
from pgolf.scoring import bpb
from pgolf.scoring.static import StaticLosses, to_device
from pgolf.train.model.gpt import GPT, PRESETS

SHAPES = {"q": (512, 512), "k": (256, 512), "v": (256, 512), "o": (512, 512), "up": (2048, 512), "down": (512, 2048)}
EMBEDDING = (8192, 512)
FLUSH_BYTES = 1 << 28  # written to empty the cache

MISSING = "a CUDA device: kernels, evaluation and all bars need one (see benchmarks/gpu.sh)"

Progress = Callable[[str], None]
Work = Callable[[], Any]


@dataclass(frozen=True)
class Sizes:
    """layers: of the synthetic artifact. linear, large: [R, C] of products; inputs: rows of x. tokens, vocab, dim: of the
    losses. weights: [R, C] that `dequant` makes. copy_bytes, square: of the limits. preset, seq_len, batch, batches: of
    the evaluation. peak_tflops: dense bfloat16 peak of the device, for MFU."""

    layers: int = 11
    linear: tuple[tuple[int, int], ...] = (
        (512, 512), (256, 512), (2048, 512), (512, 2048), (8192, 512), (4096, 4096), (8192, 8192),
    )  # fmt: skip
    large: tuple[int, int] = (8192, 8192)
    inputs: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096)
    tokens: int = 8192
    vocab: int = 8192
    dim: int = 512
    weights: tuple[int, int] = (70_000, 512)
    copy_bytes: int = 1 << 29
    square: int = 8192
    preset: str = "golf"
    seq_len: int = 1024
    batch: int = 32
    batches: int = 40
    peak_tflops: float = 989.0


def run(device: torch.device, path: Path | None, sizes: Sizes, progress: Progress) -> dict[str, Any]:
    """All measurements, JSON-able. path: an artifact to load; None: a synthetic one."""
    with tempfile.TemporaryDirectory() as folder:
        progress("artifact")
        chosen = path or synthetic(Path(folder) / "synthetic.pgolf", sizes.layers)
        facts: dict[str, Any] = {"load": loading(chosen, device, Path(folder))}
        if device.type != "cuda":
            return facts | {"missing": MISSING}
        return facts | on_gpu(chosen, device, sizes, facts["load"], progress)


def on_gpu(path: Path, device: torch.device, sizes: Sizes, load: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """What needs a GPU; load: what `loading` measured, for the bars."""
    facts: dict[str, Any] = {}
    for name, measure in MEASURES.items():
        progress(name)
        facts[name] = measure(path, device, sizes, facts.get("limits"))
    return facts | {"bars": bars(facts, load["seconds"]["rans"], sizes)}


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
    program = shutil.which("lrzip")
    if program is None:
        return {"missing": "lrzip is not installed"}
    raw, packed_codes = folder / "codes", folder / "codes.lrz"
    planes = [plane for entry in entries.values() for plane in entry.planes or ()]
    raw.write_bytes(b"".join(plane.codes.astype(np.int8).tobytes() for plane in planes))
    subprocess.run([program, "-z", "-q", "-f", "-o", packed_codes, raw], check=True, capture_output=True)
    began = time.perf_counter()
    back = [program, "-d", "-q", "-f", "-o", folder / "again", packed_codes]
    subprocess.run(back, check=True, capture_output=True)
    return {"bytes": packed_codes.stat().st_size, "seconds": time.perf_counter() - began}


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


def limits(path: Path, device: torch.device, sizes: Sizes, _: Any) -> dict[str, float]:
    """What the device does at best: bytes a second of a copy, read and written, and bfloat16 operations a second."""
    source = torch.empty(sizes.copy_bytes, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / timed(lambda: target.copy_(source), graph=False, cold=False)
    a = torch.randn(sizes.square, sizes.square, device=device).bfloat16()
    rate = 2 * sizes.square**3 / timed(lambda: a @ a, graph=False, cold=False)
    return {"copy_bytes_per_second": copied, "matmul_flops": rate}


def decoding(path: Path, device: torch.device, sizes: Sizes, _: Any) -> dict[str, Any]:
    """The kernel alone, on the artifact's own stream, for several numbers of lanes a program."""
    kept: list[rans_decode.LanesOnDevice] = []

    class Kept(OnDevice):
        def decode(self, coded: CodedLanes, loops: Loops | None) -> Tensor:
            kept.append(rans_decode.LanesOnDevice.of(coded, self.device))
            return super().decode(coded, loops)

    dense.read(path, Kept(device))
    given = kept[0]
    lanes, symbols = len(given.states), int(given.starts[-1])
    chosen = rans_decode.lanes_of_a_program(lanes, device)
    seconds = {
        block: timed(lambda b=block: rans_decode.launch_rans_decode(given, b), graph=False, cold=True)
        for block in (8, 16, 32)
    }
    return {
        "symbols": symbols,
        "lanes": lanes,
        "lanes_of_a_program": chosen,
        "seconds_by_lanes_of_a_program": seconds,
        "seconds_for_36M": seconds[chosen] * 36e6 / symbols,
    }


def dequantizing(path: Path, device: torch.device, sizes: Sizes, best: dict[str, float]) -> dict[str, Any]:
    """Codes to bfloat16 weights, as a share of the copy's bandwidth."""
    rows, cols = sizes.weights
    row, col = torch.rand(rows, device=device), torch.rand(cols, device=device)
    out = torch.empty(rows, cols, dtype=torch.bfloat16, device=device)
    facts = {}
    for kind in (torch.int8, torch.int16):
        codes = torch.randint(-31, 32, (rows, cols), device=device).to(kind)
        moved = codes.nbytes + out.nbytes + row.nbytes + col.nbytes
        facts[str(kind)] = _shares(
            lambda c=codes: dequant.launch_dequant(c, row, col, out), moved / best["copy_bytes_per_second"]
        )
    return facts


def _shares(work: Work, ideal: float) -> dict[str, dict[str, float]]:
    """Seconds and the share of the device's best, whose time is `ideal`: hot and cold, eager and in a graph."""
    return {name: {"seconds": seconds, "share": ideal / seconds} for name, seconds in _four(work).items()}


def scoring(path: Path, device: torch.device, sizes: Sizes, best: dict[str, float]) -> dict[str, Any]:
    """Losses from logits, as a share of the copy's bandwidth, and with the head, of the matmul's rate."""
    logits = torch.randn(sizes.tokens, sizes.vocab, device=device).bfloat16()
    hidden = torch.randn(sizes.tokens, sizes.dim, device=device).bfloat16()
    head = torch.randn(sizes.vocab, sizes.dim, device=device).bfloat16()
    targets = torch.randint(0, sizes.vocab, (sizes.tokens,), device=device)
    flops = 2 * sizes.tokens * sizes.vocab * sizes.dim
    return {
        "kernel": _shares(
            lambda: softcap_nll.launch_softcap_nll(logits, targets, 30.0), logits.nbytes / best["copy_bytes_per_second"]
        ),
        "with_head": _shares(lambda: softcap_nll.head_nll(hidden, head, targets, 30.0), flops / best["matmul_flops"]),
    }


def products(path: Path, device: torch.device, sizes: Sizes, _: Any) -> list[dict[str, Any]]:
    """quant_linear beside torch.matmul in bfloat16, for each shape, width and number of rows of x, in a graph."""
    return [row for shape in sizes.linear for row in _products_of(shape, device, sizes)]


def _products_of(shape: tuple[int, int], device: torch.device, sizes: Sizes) -> list[dict[str, Any]]:
    dense = torch.randn(shape, device=device).bfloat16()
    scales = torch.rand(shape[0], device=device), torch.rand(shape[1], device=device)
    found = []
    for bits in packed.WIDTHS:
        half = 1 << (bits - 1)
        weight = packed.pack(torch.randint(-half, half, shape, device=device), *scales, bits=bits)
        for inputs in sizes.inputs:
            x = torch.randn(inputs, shape[1], device=device).bfloat16()
            row: dict[str, Any] = {"shape": shape, "inputs": inputs, "bits": bits}
            for name, cold in (("hot", False), ("cold", True)):
                ours = timed(lambda x=x, w=weight: quant_linear.quant_linear(x, w), graph=True, cold=cold)
                theirs = timed(lambda x=x: x @ dense.T, graph=True, cold=cold)
                row[name] = {"seconds": ours, "matmul_seconds": theirs, "speedup": theirs / ours}
            found.append(row)
    return found


def evaluation(path: Path, device: torch.device, sizes: Sizes, _: Any) -> dict[str, Any]:
    """Tokens a second and MFU of `pgolf eval`: of a dense model, of its artifact loaded dense, and packed."""
    config = PRESETS[sizes.preset]
    count = sizes.batches * sizes.batch * sizes.seq_len + 1
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, count).astype(np.uint16)
    models = {name: GPT(config) for name in ("dense", "artifact", "packed")}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pgolf"
        packing.pack(models["dense"], file, method="sdclip", settings=Settings(bits=6))
        for name in ("artifact", "packed"):
            load_module(file, models[name], packed=name == "packed")
    weights = sum(parameter.numel() for parameter in models["dense"].parameters())
    flops = 2 * weights + 2 * config.layers * config.dim * sizes.seq_len
    facts = {name: _scored(model, tokens, device, sizes) for name, model in models.items()}
    for row in facts.values():
        row["mfu"] = row["tokens_per_second"] * flops / (sizes.peak_tflops * 1e12)
    return facts


def _scored(model: GPT, tokens: Any, device: torch.device, sizes: Sizes) -> dict[str, float]:
    logits = logits_of(to_device(model, device))
    compiled = device.type == "cuda"
    fast = StaticLosses(model, logits, seq_len=sizes.seq_len, batch_size=sizes.batch, compile=compiled)
    began = time.perf_counter()
    bpb.score_windows(logits, tokens, seq_len=sizes.seq_len, batch_size=sizes.batch, losses=fast, device=device)
    seconds = time.perf_counter() - began - fast.compile_seconds
    return {"tokens_per_second": (len(tokens) - 1) / seconds, "compile_seconds": fast.compile_seconds}


MEASURES: dict[str, Callable[..., Any]] = {
    "limits": limits,
    "rans_decode": decoding,
    "dequant": dequantizing,
    "softcap_nll": scoring,
    "quant_linear": products,
    "eval": evaluation,
}


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
