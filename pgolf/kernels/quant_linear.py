"""`quant_linear`: y = x Wᵀ with W packed, the codes unpacked in registers, for the few rows of x that generation has."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.kernels.device import jit, tl, triton
from pgolf.kernels.launch import FLOATS, launch, require
from pgolf.kernels.packed import Packed, check, dense, dense_reference, field, unit_words

# Rows of x up to which a program owns some rows of W and reads them once, so that the time is that of reading the packed
# bytes. With more, W is dequantized once for the call and torch multiplies.
FUSED_ROWS = 64
STAGES = 3


def quant_linear_reference(x: Tensor, weight: Packed) -> Tensor:
    """See `quant_linear`."""
    return F.linear(x, dense_reference(weight, x.dtype))


def quant_linear(x: Tensor, weight: Packed) -> Tensor:
    """x [..., C] float32, float16 or bfloat16 times weight [R, C] transposed: [..., R] in the dtype of x.

    Sums are float32. Differentiable with respect to x; torch.compile takes it as one operation.
    Raises ValueError for an x of another dtype, width or device.
    """
    w = weight
    if x.shape[-1] != w.cols:
        raise ValueError(f"x has {x.shape[-1]} columns, the weight {w.cols}")
    y: Tensor = _operation(x.reshape(-1, w.cols), w.low, w.high, w.row_scale, w.col_scale, w.bits, w.cols)
    return y.view(*x.shape[:-1], w.low.shape[0])


@torch.library.custom_op(
    "pgolf::quant_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor low, Tensor? high, Tensor? row_scale, Tensor? col_scale, int bits, int cols) -> Tensor",
)
def _operation(
    x: Tensor,
    low: Tensor,
    high: Tensor | None,
    row_scale: Tensor | None,
    col_scale: Tensor | None,
    bits: int,
    cols: int,
) -> Tensor:
    weight = Packed(low, high, row_scale, col_scale, bits, cols)
    require("x", x, (None, cols), FLOATS, x, contiguous=False)
    check(weight, x)
    if not x.is_cuda:
        return quant_linear_reference(x, weight)
    if x.shape[0] > FUSED_ROWS:
        return F.linear(x, dense(weight, x.dtype))
    return launch_quant_linear(x, weight)


@_operation.register_fake
def _(x: Tensor, low: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], low.shape[0])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *tensors, ctx.bits, ctx.cols = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (_dense_operation(*ctx.saved_tensors, grad, ctx.bits, ctx.cols), *(None,) * 6)


@torch.library.custom_op(
    "pgolf::quant_linear_grad",
    mutates_args=(),
    schema="(Tensor low, Tensor? high, Tensor? row_scale, Tensor? col_scale, Tensor grad, int bits, int cols) -> Tensor",
)
def _dense_operation(
    low: Tensor,
    high: Tensor | None,
    row_scale: Tensor | None,
    col_scale: Tensor | None,
    grad: Tensor,
    bits: int,
    cols: int,
) -> Tensor:
    """grad [N, R] @ W."""
    return grad @ dense(Packed(low, high, row_scale, col_scale, bits, cols), grad.dtype)


@_dense_operation.register_fake
def _(low: Tensor, high: Any, row_scale: Any, col_scale: Any, grad: Tensor, bits: int, cols: int) -> Tensor:
    return grad.new_empty(grad.shape[0], cols)


_operation.register_autograd(_gradient, setup_context=_remember)


@lru_cache
def _processors(device: torch.device) -> int:
    """Programs that a device runs side by side; in the interpreter, one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


class LaunchShape(NamedTuple):
    """block_m: rows of x of a program; block_n: rows of W; split: programs that share a row of W; warps: of a program."""

    block_m: int
    block_n: int
    split: int
    warps: int


def launch_shape(inputs: int, outputs: int, units: int, processors: int) -> LaunchShape:
    """Enough programs to fill the device, no smaller.

    Where rows are long and programs few, each row is split among programs, whose parts are added in a fixed order (no
    atomics, so the same bits every time).
    """
    block_m = 16 if inputs <= 16 else 32 if inputs <= 32 else 64
    block_n = next((n for n in (64, 32) if 2 * outputs >= 3 * n * processors), 16)
    programs, split = -(-outputs // block_n), 1
    while programs * split < processors and units % (2 * split) == 0 and units // split > 4:
        split *= 2
    return LaunchShape(block_m, block_n, split, min(4, block_n // 8))


def stages(block_m: int) -> int:
    """Units that a program has in flight."""
    return STAGES if block_m < 64 else 2


def launch_quant_linear(x: Tensor, weight: Packed) -> Tensor:
    """The kernel, whatever the device: x [M, C] -> [M, R]."""
    (inputs, cols), outputs = x.shape, weight.low.shape[0]
    words = unit_words(cols)
    units = weight.low.shape[1] // words
    block_m, block_n, split, warps = launch_shape(inputs, outputs, units, _processors(x.device))
    x = x if x.stride(1) == 1 else x.contiguous()
    kind = x.dtype if split == 1 else torch.float32
    out = torch.empty(split, inputs, outputs, dtype=kind, device=x.device)
    if out.numel():
        grid = triton.cdiv(outputs, block_n), triton.cdiv(inputs, block_m), split
        launch(
            quant_linear_kernel, grid, x, weight.low, weight.high, weight.row_scale, weight.col_scale, out, inputs, outputs,
            x.stride(0), COLS=cols, BITS=weight.bits, WORDS=words, UNITS=units, SPLIT=split, BLOCK_M=block_m, BLOCK_N=block_n,
            num_warps=warps, num_stages=stages(block_m),
        )  # fmt: skip
    return out[0] if split == 1 else out.sum(0).to(x.dtype)


@jit
def quant_linear_kernel(  # type: ignore[no-untyped-def]  # Triton gives the types
    x, low, high, row_scale, col_scale, out, inputs, outputs, stride_x,
    COLS: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr, UNITS: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of x by BLOCK_N outputs a program, over one part of the inputs; see `quant_linear`.

    A code becomes code · column scale, rounded once to the dtype of x; the row scale waits for the sums.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(2)
    row = n.to(tl.int64) * (UNITS * WORDS)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(0, UNITS // SPLIT):
        unit = part * (UNITS // SPLIT) + step
        word = row[:, None] + (unit * WORDS + tl.arange(0, WORDS))[None, :]
        lows = tl.load(low + word, (n < outputs)[:, None], other=0)
        highs = lows
        if BITS > 4:
            highs = tl.load(high + word, (n < outputs)[:, None], other=0).to(tl.int32)
        for f in tl.static_range(8):
            k = (unit * 8 + f) * WORDS + tl.arange(0, WORDS)
            inside = (m < inputs)[:, None] & (k < COLS)[None, :]
            some = tl.load(x + m[:, None].to(tl.int64) * stride_x + k[None, :], inside, other=0.0)
            codes = field(lows, highs, f, BITS)
            if col_scale is not None:
                codes = codes * tl.load(col_scale + k, k < COLS, other=0.0)[None, :]
            total = tl.dot(some, tl.trans(codes.to(x.dtype.element_ty)), total, input_precision="ieee")
    if row_scale is not None:
        total = total * tl.load(row_scale + n, n < outputs, other=0.0)[None, :]
    at = out + (part * inputs + m)[:, None].to(tl.int64) * outputs + n[None, :]
    tl.store(at, total.to(out.dtype.element_ty), (m < inputs)[:, None] & (n < outputs)[None, :])
