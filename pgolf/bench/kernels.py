"""Each kernel as a share of what the device does at best: of the bandwidth of a copy, the rate of a bfloat16 matmul, or
torch.matmul on the same shape."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from pgolf.bench import clock
from pgolf.bench.clock import Work
from pgolf.bench.sizes import Sizes
from pgolf.kernels import dequant, packed, quant_linear, rans_decode, softcap_nll
from pgolf.loading import dense
from pgolf.loading.on_device import OnDevice
from pgolf.packer.coder.layout import CodedLanes
from pgolf.packer.coder.loops import Loops


def limits(device: torch.device, sizes: Sizes) -> dict[str, float]:
    """What the device does at best: bytes a second of a copy, read and written, and bfloat16 operations a second."""
    source = torch.empty(sizes.copy_bytes, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / clock.timed(lambda: target.copy_(source), graph=False, cold=False)
    a = torch.randn(sizes.square, sizes.square, device=device).bfloat16()
    rate = 2 * sizes.square**3 / clock.timed(lambda: a @ a, graph=False, cold=False)
    return {"copy_bytes_per_second": copied, "matmul_flops": rate}


def decoding(path: Path, device: torch.device) -> dict[str, Any]:
    """The kernel alone, on the artifact's own stream, for several numbers of lanes a program."""
    kept: list[rans_decode.LanesOnDevice] = []

    class Kept(OnDevice):
        def decode(self, coded: CodedLanes, loops: Loops | None) -> rans_decode.Decoded:
            kept.append(rans_decode.LanesOnDevice.of(coded, self.device))
            return super().decode(coded, loops)

    dense.read(path, Kept(device))
    given = kept[0]
    lanes, symbols = len(given.states), given.strips.symbols
    chosen = rans_decode.lanes_of_a_program(lanes, device)
    seconds = {
        block: clock.timed(partial(rans_decode.launch_rans_decode, given, block), graph=False, cold=True)
        for block in (8, 16, 32)
    }
    return {
        "symbols": symbols,
        "lanes": lanes,
        "lanes_of_a_program": chosen,
        "seconds_by_lanes_of_a_program": seconds,
        "seconds_for_36M": seconds[chosen] * 36e6 / symbols,
    }


def dequantizing(device: torch.device, sizes: Sizes, best: dict[str, float]) -> dict[str, Any]:
    """Codes to bfloat16 weights, as a share of the copy's bandwidth."""
    rows, cols = sizes.weights
    row, col = torch.rand(rows, device=device), torch.rand(cols, device=device)
    out = torch.empty(rows, cols, dtype=torch.bfloat16, device=device)
    facts = {}
    for kind in (torch.int8, torch.int16):
        codes = torch.randint(-31, 32, (rows, cols), device=device).to(kind)
        moved = codes.nbytes + out.nbytes + row.nbytes + col.nbytes
        facts[str(kind)] = _shares(
            partial(dequant.launch_dequant, codes, row, col, out), moved / best["copy_bytes_per_second"]
        )
    return facts


def _shares(work: Work, ideal: float) -> dict[str, dict[str, float]]:
    """Seconds and the share of the device's best, whose time is `ideal`: hot and cold, eager and in a graph."""
    return {name: {"seconds": seconds, "share": ideal / seconds} for name, seconds in clock.hot_and_cold(work).items()}


def scoring(device: torch.device, sizes: Sizes, best: dict[str, float]) -> dict[str, Any]:
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


def products(device: torch.device, sizes: Sizes) -> list[dict[str, Any]]:
    """quant_linear beside torch.matmul in bfloat16, for each shape, width and number of rows of x, in a graph."""
    return [row for shape in sizes.linear for row in _products_of(shape, device, sizes)]


def _products_of(shape: tuple[int, int], device: torch.device, sizes: Sizes) -> list[dict[str, Any]]:
    matrix = torch.randn(shape, device=device).bfloat16()
    scales = torch.rand(shape[0], device=device), torch.rand(shape[1], device=device)
    found = []
    for bits in packed.WIDTHS:
        half = 1 << (bits - 1)
        weight = packed.pack(torch.randint(-half, half, shape, device=device), *scales, bits=bits)
        for inputs in sizes.inputs:
            x = torch.randn(inputs, shape[1], device=device).bfloat16()
            row: dict[str, Any] = {"shape": shape, "inputs": inputs, "bits": bits}
            for name, cold in (("hot", False), ("cold", True)):
                ours = clock.timed(partial(quant_linear.quant_linear, x, weight), graph=True, cold=cold)
                theirs = clock.timed(partial(torch.matmul, x, matrix.T), graph=True, cold=cold)
                row[name] = {"seconds": ours, "matmul_seconds": theirs, "speedup": theirs / ours}
            found.append(row)
    return found
