"""`quant_linear`: y = x Wᵀ with W packed, the codes unpacked in registers, for the few rows of x that generation has."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.kernels.device import jit, jit_for_any, tl
from pgolf.kernels.graphs import counters
from pgolf.kernels.launch import FLOATS, launch, require
from pgolf.kernels.packed import Packed, check, dense, dense_reference, field, unit_words

# Rows of x up to which a program owns some rows of W and reads them once, so that the time is that of reading the packed
# bytes. With more, W is dequantized once for the call and torch multiplies; so in float32, for which there is no matrix unit:
# products in registers alone take ptxas up to a minute a shape, and spill.
FUSED_ROWS = 64
WIDE, NARROW = 64, 16  # rows of W of a program
PROGRAMS = 2  # of a processor, so that one computes while another waits for memory


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
    if x.dtype == torch.float32 or x.shape[0] > FUSED_ROWS:
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
    """block_m: rows of x of a program; block_n: rows of W; split: programs that share a row of W; warps: of a program;
    stages: units that a program has in flight."""

    block_m: int
    block_n: int
    split: int
    warps: int
    stages: int


def launch_shape(inputs: int, outputs: int, units: int, bits: int, processors: int) -> LaunchShape:
    """Enough programs to fill the device, no smaller.

    64 rows of W are what Hopper's matrix unit takes from the registers of four warps; where there would be too few such
    programs, 16 rows for the older instruction, a warp for each 16 rows of x. Rows are split among programs, down to one unit
    each, until every processor has PROGRAMS. Two programs' stages fit a processor's shared memory at up to 16 rows of x.
    """
    block_m = 16 if inputs <= 16 else 32 if inputs <= 32 else 64
    across = _ceil(inputs, block_m)
    wide = _ceil(outputs, WIDE) * across * units >= processors
    block_n = WIDE if wide else NARROW
    programs = _ceil(outputs, block_n) * across
    split = min(units, max(1, PROGRAMS * processors // max(programs, 1)))
    split = _ceil(units, _ceil(units, split))  # no program without a unit
    stages = 2 if block_m == 64 or bits == 8 else 3
    return LaunchShape(block_m, block_n, split, 4 if wide else block_m // 16, stages)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def launch_quant_linear(x: Tensor, weight: Packed) -> Tensor:
    """The kernel, whatever the device: x [M, C] -> [M, R]."""
    (inputs, cols), outputs = x.shape, weight.low.shape[0]
    words = unit_words(cols)
    units = weight.low.shape[1] // words
    how = launch_shape(inputs, outputs, units, weight.bits, _processors(x.device))
    x = x if x.stride(1) == 1 else x.contiguous()
    out = torch.empty(inputs, outputs, dtype=x.dtype, device=x.device)
    parts, arrived = None, None
    if how.split > 1:
        parts = torch.empty(how.split, inputs, outputs, dtype=torch.float32, device=x.device)
        arrived = counters(_ceil(outputs, how.block_n) * _ceil(inputs, how.block_m), x.device)
    if out.numel():
        grid = _ceil(outputs, how.block_n), _ceil(inputs, how.block_m), how.split
        launch(
            quant_linear_kernel, grid, x, weight.low, weight.high, weight.row_scale, weight.col_scale, out, parts, arrived,
            inputs, outputs, x.stride(0), COLS=cols, BITS=weight.bits, WORDS=words, UNITS=units, SPLIT=how.split,
            BLOCK_M=how.block_m, BLOCK_N=how.block_n, num_warps=how.warps, num_stages=how.stages,
        )  # fmt: skip
    return out


@jit_for_any("inputs")
def quant_linear_kernel(  # type: ignore[no-untyped-def]  # Triton gives the types
    x, low, high, row_scale, col_scale, out, parts, arrived, inputs, outputs, stride_x,
    COLS: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr, UNITS: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_N outputs of BLOCK_M rows of x a program, over one of SPLIT parts of the inputs; see `quant_linear`.

    A code becomes code · column scale, rounded once to the dtype of x; the row scale waits for the sums. The product is
    taken transposed, W xᵀ: weights then are the operand that the matrix unit takes from registers, where they are made.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    STEPS: tl.constexpr = (UNITS + SPLIT - 1) // SPLIT
    row = n.to(tl.int64) * (UNITS * WORDS)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(0, STEPS):
        unit = tl.program_id(2) * STEPS + step
        there = n < tl.where(unit < UNITS, outputs, 0)
        word = row[:, None] + (unit * WORDS + tl.arange(0, WORDS))[None, :]
        lows = tl.load(low + word, there[:, None], other=0)
        highs = lows
        if BITS > 4:
            highs = tl.load(high + word, there[:, None], other=0).to(tl.int32)
        for f in tl.static_range(8):
            k = (unit * 8 + f) * WORDS + tl.arange(0, WORDS)
            inside = (m < inputs)[None, :] & (k < COLS)[:, None]
            some = tl.load(x + m[None, :].to(tl.int64) * stride_x + k[:, None], inside, other=0.0)
            codes = field(lows, highs, f, BITS)
            if col_scale is not None:
                codes = codes * tl.load(col_scale + k, k < COLS, other=0.0)[None, :]
            total = tl.dot(codes.to(x.dtype.element_ty), some, total, input_precision="ieee")
    at = out + m[None, :].to(tl.int64) * outputs + n[:, None]
    inside = (m < inputs)[None, :] & (n < outputs)[:, None]
    if SPLIT == 1:
        put_products(at, total, row_scale, n, outputs, inside)
    else:
        mine = (tl.program_id(2) * inputs + m)[None, :].to(tl.int64) * outputs + n[:, None]
        tl.store(parts + mine, total, inside)
        tl.debug_barrier()  # all threads' sums are written before one of them says so
        tile = arrived + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        if tl.atomic_add(tile, 1, sem="acq_rel") == SPLIT - 1:  # the last one adds, always in the same order
            whole = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            for part in tl.static_range(SPLIT):
                theirs = (part * inputs + m)[None, :].to(tl.int64) * outputs + n[:, None]
                whole += tl.load(parts + theirs, inside, other=0.0, cache_modifier=".cg")
            put_products(at, whole, row_scale, n, outputs, inside)
            tl.store(tile, 0)


@jit
def put_products(at, sums, row_scale, n, outputs, inside):  # type: ignore[no-untyped-def]  # Triton gives the types
    """Sums [BLOCK_N, BLOCK_M] times their rows' scales, in the dtype of the output."""
    if row_scale is not None:
        sums = sums * tl.load(row_scale + n, n < outputs, other=0.0)[:, None]
    tl.store(at, sums.to(at.dtype.element_ty), inside)
