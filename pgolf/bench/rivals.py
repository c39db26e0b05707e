"""Products with weights of 4 bits as others make them, where they are installed: what `quant_linear` is to be compared with."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from pgolf.bench import clock
from pgolf.bench.sizes import Sizes
from pgolf.kernels import packed, quant_linear

BITS, GROUP = 4, 128  # weights that share a scale: all of them take this many
LONGEST = 80.0  # seconds on one of them, which may tune itself at each size
Product = Callable[[Tensor], Tensor]


def compared(device: torch.device, sizes: Sizes) -> list[dict[str, Any]]:
    """Seconds in a graph, hot and cold, of quant_linear, torch.matmul in bfloat16 and each of RIVALS, for each shape and number
    of rows of x; of a rival that does not run here, why."""
    found, spent = [], defaultdict[str, float](float)
    for shape in sizes.compared:
        codes = torch.randint(-8, 8, shape, device=device)
        matrix = torch.randn(shape, device=device).bfloat16()
        weight = packed.pack(codes, torch.rand(shape[0], device=device), torch.rand(shape[1], device=device), bits=BITS)
        works: dict[str, Product | str] = {
            "quant_linear": partial(quant_linear.quant_linear, weight=weight),
            "matmul": partial(torch.matmul, other=matrix.T),
        }
        works |= {name: _made(make, codes) for name, make in RIVALS.items()}
        for inputs in sizes.inputs:
            x = torch.randn(inputs, shape[1], device=device).bfloat16()
            row: dict[str, Any] = {"shape": shape, "inputs": inputs}
            for name, work in works.items():
                began = time.perf_counter()
                row[name] = _seconds(work, x) if spent[name] < LONGEST else f"left out: {LONGEST:g} s were spent on it"
                spent[name] += time.perf_counter() - began
            found.append(row)
    return found


def _made(make: Callable[[Tensor], Product], codes: Tensor) -> Product | str:
    try:
        return make(codes)
    except Exception as error:  # somebody else's code: whatever ends it is no failure of ours
        return _reason(error)


def _seconds(work: Product | str, x: Tensor) -> dict[str, float] | str:
    if isinstance(work, str):
        return work
    try:
        return {"hot": timed(partial(work, x), cold=False), "cold": timed(partial(work, x), cold=True)}
    except Exception as error:  # as above
        return _reason(error)


timed = partial(clock.timed, graph=True)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _tinygemm(codes: Tensor) -> Product:
    """torch's own, which torchao launches too; weights `codes` [R, C] from -8 to 7 times random scales."""
    unsigned = (codes + 8).to(torch.uint8)
    pairs = (unsigned[:, ::2] << 4 | unsigned[:, 1::2]).contiguous()
    scales = torch.rand(codes.shape[1] // GROUP, codes.shape[0], 1, device=codes.device)
    both = torch.cat([scales, torch.zeros_like(scales)], 2).bfloat16().contiguous()  # and zero points
    weight = torch.ops.aten._convert_weight_to_int4pack(pairs, 8)
    return lambda x: torch.ops.aten._weight_int4pack_mm(x, weight, GROUP, both)


def _torchao(codes: Tensor) -> Product:
    """Whatever its default for this device is."""
    quantization = import_module("torchao.quantization")
    layer = torch.nn.Linear(codes.shape[1], codes.shape[0], bias=False, device=codes.device, dtype=torch.bfloat16)
    whole = torch.nn.Sequential(layer)
    quantization.quantize_(whole, quantization.Int4WeightOnlyConfig(group_size=GROUP))
    return whole


def _gemlite(codes: Tensor) -> Product:
    """Its grouped integer weights; it tunes itself at the first call of each size."""
    helper = import_module("gemlite.helper")
    scales = torch.rand(codes.numel() // GROUP, 1, device=codes.device).bfloat16()
    made = helper.A16Wn(device=str(codes.device), dtype=torch.bfloat16)
    layer: Product = made.from_weights((codes + 8).to(torch.uint8), scales, torch.full_like(scales, 8.0), BITS, GROUP)
    return layer


RIVALS: dict[str, Callable[[Tensor], Product]] = {"tinygemm": _tinygemm, "torchao": _torchao, "gemlite": _gemlite}
