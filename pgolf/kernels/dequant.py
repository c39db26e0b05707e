"""`dequant`: codes and scales to weights, (code · row_scale) · col_scale in float32, rounded once to the wanted dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from pgolf.kernels.device import jit, tl, triton
from pgolf.kernels.launch import FLOATS, INTEGERS, launch, require

TILE = 4096  # codes of a program: 32 a thread
TALL, WIDE = 128, 512  # rows of a tall tile, columns of a wide one
WARPS = 4


def dequant_reference(
    codes: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """See `dequant`."""
    weights = codes.float()
    if row_scale is not None:
        weights = weights * row_scale[:, None]
    if col_scale is not None:
        weights = weights * col_scale
    return weights.to(dtype)


def dequant(
    codes: Tensor,
    row_scale: Tensor | None,
    col_scale: Tensor | None,
    dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
) -> Tensor:
    """Weights [R, C] of integer codes [R, C] (any strides) and float32 scales [R], [C]; a missing scale is 1.

    dtype: bfloat16, float16 or float32, what a product is rounded to. out: contiguous [R, C] of that dtype to write to.
    Raises ValueError for operands of another kind, or on several devices.
    """
    if out is None:
        out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    require("codes", codes, (None, None), INTEGERS, codes, contiguous=False)
    require("out", out, tuple(codes.shape), FLOATS, codes)
    for name, scale, length in zip(("row_scale", "col_scale"), (row_scale, col_scale), codes.shape, strict=True):
        if scale is not None:
            require(name, scale, (length,), (torch.float32,), codes)
    if codes.is_cuda:
        return launch_dequant(codes, row_scale, col_scale, out)
    return out.copy_(dequant_reference(codes, row_scale, col_scale, out.dtype))


def launch_dequant(codes: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, out: Tensor) -> Tensor:
    """The kernel, whatever the device."""
    rows, cols = codes.shape
    if codes.numel() == 0:
        return out
    turned = codes.stride(1) != 1 and codes.stride(0) == 1
    codes = codes if turned or codes.stride(1) == 1 else codes.contiguous()
    block_r, block_c = tile(cols, turned)
    bf16 = out.dtype == torch.bfloat16
    grid = (triton.cdiv(rows, block_r) * triton.cdiv(cols, block_c),)
    launch(
        dequant_kernel, grid, codes, codes if row_scale is None else row_scale, codes if col_scale is None else col_scale,
        out.view(torch.int16) if bf16 else out, rows, cols, codes.stride(1 if turned else 0),
        TURNED=turned, ROW_SCALE=row_scale is not None, COL_SCALE=col_scale is not None, BF16=bf16,
        BLOCK_R=block_r, BLOCK_C=block_c, num_warps=WARPS,
    )  # fmt: skip
    return out


def tile(cols: int, turned: bool) -> tuple[int, int]:
    """Rows and columns of a program's tile: one of two, so that a new shape seldom means a new kernel.

    turned: the codes are a transposed view, as the coder's strips run down columns (docs/FORMAT.md). The compiler then
    loads along rows, turns the tile in shared memory, and stores along columns, so both sides stay wide.
    """
    return (TALL, TILE // TALL) if turned or cols < WIDE else (TILE // WIDE, WIDE)


@jit
def dequant_kernel(  # type: ignore[no-untyped-def]  # Triton gives the types
    codes, row_scale, col_scale, out, rows, cols, stride, TURNED: tl.constexpr,
    ROW_SCALE: tl.constexpr, COL_SCALE: tl.constexpr, BF16: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_R rows and BLOCK_C columns a program; see `dequant`. stride: between rows, of TURNED codes columns."""
    across = tl.cdiv(cols, BLOCK_C)
    r = (tl.program_id(0) // across).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = (tl.program_id(0) % across).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (r[:, None] < rows) & (c[None, :] < cols)
    place = r[:, None] + c[None, :] * stride if TURNED else r[:, None] * stride + c[None, :]
    value = tl.load(codes + place, inside, other=0).to(tl.float32)
    if ROW_SCALE:
        value = value * tl.load(row_scale + r, r < rows, other=0.0)[:, None]
    if COL_SCALE:
        value = value * tl.load(col_scale + c, c < cols, other=0.0)[None, :]
    at = out + r[:, None] * cols + c[None, :]
    put(at, value, inside, BF16)


@jit
def put(at, value, inside, BF16: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton gives the types
    """Store float32 `value`, rounded once to the dtype that `at` points to; bfloat16 (BF16) is stored as its bits, int16."""
    if BF16:
        tl.store(at, rounded(value), inside)
    else:
        tl.store(at, value.to(at.dtype.element_ty), inside)


@jit
def rounded(value):  # type: ignore[no-untyped-def]  # Triton gives the types
    """The bits of float32 `value` rounded to bfloat16, to nearest even; NaN stays NaN. int16.

    With integers: the same bits on every GPU, and in Triton's interpreter, whose own conversion truncates.
    """
    bits = value.to(tl.int32, bitcast=True)
    even = bits + 0x7FFF + ((bits >> 16) & 1)
    return tl.where(value == value, even >> 16, 0x7FC0).to(tl.int16)  # noqa: PLR0124  false for NaN alone
