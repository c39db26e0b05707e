"""Matrices that stay integers in memory: codes of 4, 5, 6 or 8 bits in words, beside their scales.

What will surprise you:
* Codes run along a row in units of 8 · W (W words: 16, 32 or 64). Word j of a unit holds the low four bits of codes
  j, W + j, 2W + j ... 7W + j, the first lowest. So one field of W words is W neighbouring codes, ready for a matrix
  unit, and nothing moves between threads. The bits above the fourth lie in a second array in the same order, 8, 16 or
  32 bits wide, in the places of `high_shift`. A row is filled up to whole units with zeros.
* A code is stored plus 2^(bits − 1), so that fields are unsigned.
* Nothing is shifted down to become a number: see `field`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pgolf.kernels.dequant import dequant_reference, put
from pgolf.kernels.device import jit, tl, triton
from pgolf.kernels.launch import FLOATS, launch, require

WIDTHS = (4, 5, 6, 8)
FIELDS = 8  # codes whose low bits share a word
LOW = 4  # bits of a code in the first array
_UNIT_WORDS = (64, 32, 16)
_HIGH = {5: torch.int8, 6: torch.int16, 8: torch.int32}
_GROUP = {4: 4, 5: 2, 6: 4, 8: 4}  # fields that one shift of a word brings below the float's exponent
OVERLAPPING = 4  # units: with fewer, loads do not run ahead of the matrix unit
TILE_ROWS = 16  # of a program that unpacks


@dataclass(frozen=True)
class Packed:
    """A quantized matrix [R, C]: W = codes · row_scale · col_scale.

    low: int32 [R, words]; high: int8, int16 or int32 [R, words], None at 4 bits; row_scale: float32 [R] or None;
    col_scale: float32 [C] or None; bits: one of WIDTHS; cols: C.
    """

    low: Tensor
    high: Tensor | None
    row_scale: Tensor | None
    col_scale: Tensor | None
    bits: int
    cols: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.low.shape[0], self.cols

    @property
    def num_bytes(self) -> int:
        """Bytes of memory."""
        parts = (self.low, self.high, self.row_scale, self.col_scale)
        return sum(part.nbytes for part in parts if part is not None)

    def rows(self, index: Tensor) -> Packed:
        """The matrix of the rows `index` [n]."""
        high, scale = (None if part is None else part.index_select(0, index) for part in (self.high, self.row_scale))
        return replace(self, low=self.low.index_select(0, index), high=high, row_scale=scale)


def check(packed: Packed, like: Tensor) -> None:
    """Raises ValueError unless the parts fit each other and lie, without gaps, on the device of `like`."""
    rows, cols = packed.shape
    if packed.bits not in WIDTHS:
        raise ValueError(f"a packed matrix has {', '.join(map(str, WIDTHS))} bits a code, not {packed.bits}")
    words = unit_words(cols) * -(-cols // (FIELDS * unit_words(cols)))
    require("low", packed.low, (rows, words), (torch.int32,), like)
    if (packed.high is None) != (packed.bits == LOW):
        raise ValueError(f"high is {'missing' if packed.high is None else 'there'} with {packed.bits} bits a code")
    if packed.high is not None:
        require("high", packed.high, (rows, words), (_HIGH[packed.bits],), like)
    for name, scale, length in (("row_scale", packed.row_scale, rows), ("col_scale", packed.col_scale, cols)):
        if scale is not None:
            require(name, scale, (length,), (torch.float32,), like)


def width_of(lowest: int, highest: int) -> int | None:
    """The fewest bits that hold codes from `lowest` to `highest`; None where 8 do not."""
    return next((bits for bits in WIDTHS if -(1 << (bits - 1)) <= lowest and highest < 1 << (bits - 1)), None)


def unit_words(cols: int) -> int:
    """Words of a unit for rows of so many codes: the least padding, then enough units to overlap, then the longest."""

    def cost(words: int) -> tuple[int, bool, int]:
        units = -(-cols // (FIELDS * words))
        return units * words, units < OVERLAPPING, -words

    return min(_UNIT_WORDS, key=cost)


def high_shift(bits: int, field: int) -> int:
    """Where the high bits of a field (0..7) begin: four apart within a group, so that they fit above its low bits."""
    group, place = divmod(field, _GROUP[bits])
    return 4 * place + group * (16 if bits == 8 else bits - LOW)


def pack(codes: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, bits: int | None = None) -> Packed:
    """Codes [R, C] of any integer type in words, `bits` a code (None: as few as hold them). ValueError above 8 bits."""
    needed = width_of(int(codes.min()), int(codes.max())) if codes.numel() else LOW
    bits = bits or needed
    if bits is None or needed is None or needed > bits:
        raise ValueError("the codes need more bits than a packed matrix has")
    return pack_fitting(codes, row_scale, col_scale, bits)


def pack_fitting(codes: Tensor, row_scale: Tensor | None, col_scale: Tensor | None, bits: int) -> Packed:
    """`pack` of codes that are known to fit: nothing waits for a device."""
    words = unit_words(codes.shape[1])
    padding = -codes.shape[1] % (FIELDS * words)
    fields = torch.nn.functional.pad(codes.int(), (0, padding)) + (1 << (bits - 1))
    fields = fields.view(codes.shape[0], -1, FIELDS, words)
    low = _gather(fields & 15, [LOW * k for k in range(FIELDS)])
    high = None if bits == LOW else _gather(fields >> LOW, _high_shifts(bits)).to(_HIGH[bits])
    return Packed(low, high, *_balanced(row_scale, col_scale, codes.shape[0]), bits, codes.shape[1])


def _high_shifts(bits: int) -> list[int]:
    return [high_shift(bits, k) for k in range(FIELDS)]


def _gather(fields: Tensor, shifts: list[int]) -> Tensor:
    """Fields [R, U, FIELDS, W] -> int32 [R, U · W]."""
    out = torch.zeros_like(fields[:, :, 0])
    for k, shift in enumerate(shifts):
        out |= fields[:, :, k] << shift
    return out.flatten(1)


def _balanced(row_scale: Tensor | None, col_scale: Tensor | None, rows: int) -> tuple[Tensor | None, Tensor | None]:
    """The scales with a power of two moved from columns to rows, so that code · col_scale suits a float16 as well."""
    if col_scale is None or not col_scale.numel():
        return row_scale, col_scale
    exponent = torch.frexp(col_scale.abs().max()).exponent
    if row_scale is None:
        row_scale = torch.ones(rows, dtype=torch.float32, device=col_scale.device)
    return torch.ldexp(row_scale, exponent), torch.ldexp(col_scale, -exponent)


def unpack(packed: Packed) -> Tensor:
    """int16 [R, C]: the inverse of `pack`."""
    fields = _scatter(packed, packed.low, [LOW * k for k in range(FIELDS)], 15)
    if packed.high is not None:
        mask = (1 << (packed.bits - LOW)) - 1
        fields = fields | _scatter(packed, packed.high, _high_shifts(packed.bits), mask) << LOW
    codes = fields.flatten(1)[:, : packed.cols] - (1 << (packed.bits - 1))
    return codes.to(torch.int16)


def _scatter(packed: Packed, array: Tensor, shifts: list[int], mask: int) -> Tensor:
    by = torch.tensor(shifts, dtype=torch.int32, device=array.device)[:, None]
    return array.int().view(array.shape[0], -1, 1, unit_words(packed.cols)) >> by & mask


def dense_reference(packed: Packed, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """See `dense`."""
    return dequant_reference(unpack(packed), packed.row_scale, packed.col_scale, dtype)


def dense(packed: Packed, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Weights [R, C] in `dtype`, of bfloat16, float16 and float32 the same bits as `dequant` of the codes.

    torch.compile takes it as one operation. Raises ValueError where the parts do not fit.
    """
    check(packed, packed.low)
    if dtype not in FLOATS:
        return dense(packed, torch.float32).to(dtype)
    p = packed
    weights: Tensor = _operation(p.low, p.high, p.row_scale, p.col_scale, p.bits, p.cols, dtype)
    return weights


@torch.library.custom_op(
    "pgolf::unpack",
    mutates_args=(),
    schema="(Tensor low, Tensor? high, Tensor? row_scale, Tensor? col_scale, int bits, int cols, ScalarType dtype) -> Tensor",
)
def _operation(
    low: Tensor,
    high: Tensor | None,
    row_scale: Tensor | None,
    col_scale: Tensor | None,
    bits: int,
    cols: int,
    dtype: torch.dtype,
) -> Tensor:
    packed = Packed(low, high, row_scale, col_scale, bits, cols)
    return launch_unpack(packed, dtype) if low.is_cuda else dense_reference(packed, dtype)


@_operation.register_fake
def _(low: Tensor, high: Any, row_scale: Any, col_scale: Any, bits: int, cols: int, dtype: torch.dtype) -> Tensor:
    return low.new_empty(low.shape[0], cols, dtype=dtype)


def launch_unpack(packed: Packed, dtype: torch.dtype) -> Tensor:
    """The kernel, whatever the device."""
    rows, cols = packed.shape
    out = torch.empty(rows, cols, dtype=dtype, device=packed.low.device)
    words = unit_words(cols)
    if not out.numel():
        return out
    bf16 = dtype == torch.bfloat16
    grid = triton.cdiv(rows, TILE_ROWS), packed.low.shape[1] // words
    launch(
        unpack_kernel, grid, packed.low, packed.high, packed.row_scale, packed.col_scale,
        out.view(torch.int16) if bf16 else out, rows, cols, packed.low.shape[1],
        BITS=packed.bits, WORDS=words, BF16=bf16, BLOCK_R=TILE_ROWS,
    )  # fmt: skip
    return out


@jit
def unpack_kernel(  # type: ignore[no-untyped-def]  # Triton gives the types
    low, high, row_scale, col_scale, out, rows, cols, row_words,
    BITS: tl.constexpr, WORDS: tl.constexpr, BF16: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """BLOCK_R rows of one unit of words a program; see `dense`."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    unit = tl.program_id(1)
    word = r[:, None] * row_words + (unit * WORDS + tl.arange(0, WORDS))[None, :]
    lows = tl.load(low + word, (r < rows)[:, None], other=0)
    highs = lows
    if BITS > 4:
        highs = tl.load(high + word, (r < rows)[:, None], other=0).to(tl.int32)
    scale = tl.full((BLOCK_R,), 1.0, tl.float32)
    if row_scale is not None:
        scale = tl.load(row_scale + r, r < rows, other=0.0)
    for k in tl.static_range(8):
        c = (unit * 8 + k) * WORDS + tl.arange(0, WORDS)
        value = field(lows, highs, k, BITS) * scale[:, None]
        if col_scale is not None:
            value = value * tl.load(col_scale + c, c < cols, other=0.0)[None, :]
        inside = (r < rows)[:, None] & (c < cols)[None, :]
        at = out + r[:, None] * cols + c[None, :]
        put(at, value, inside, BF16)


@jit
def field(lows, highs, k: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton gives the types
    """Field k of words as float32, in as few instructions as can be: they decide the speed of `quant_linear`.

    The field stays in its place, 4p bits up, in the fraction of a float 2^23, which is then 2^23 + code · 16^p; one
    multiplication by 16^-p and addition, exact, leave the code. (A conversion runs at a quarter of the rate.)
    """
    GROUP: tl.constexpr = 2 if BITS == 5 else 4
    place: tl.constexpr = k % GROUP
    group: tl.constexpr = k // GROUP
    bits = (lows >> (4 * GROUP * group)) & (15 << (4 * place))
    if BITS > 4:
        above: tl.constexpr = 4 - group * (16 if BITS == 8 else BITS - 4)
        moved = (highs << above) if above >= 0 else (highs >> -above)
        bits = bits | (moved & (((1 << (BITS - 4)) - 1) << (4 * place + 4)))
    small: tl.constexpr = 1.0 / (1 << (4 * place))
    raised = (bits | 0x4B000000).to(tl.float32, bitcast=True)
    return tl.fma(raised, small, -(8388608.0 * small + (1 << (BITS - 1))))
