"""Codes in the coder's order, strip after strip, made whole: escapes and the bits put aside, all strips side by side.

Where a strip's escapes and bits begin depends on all before it. So one launch counts them strip by strip, a running sum
follows, and only then is each strip restored; the host waits once, for the sums at the ends of the matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.errors import ArtifactError
from pgolf.kernels.device import jit, jit_for_any, tl
from pgolf.kernels.launch import launch
from pgolf.kernels.staging import together
from pgolf.packer.coder import aside, classes
from pgolf.packer.coder.stream import Layout, restored
from pgolf.packer.coder.strips import ClassSums
from pgolf.packer.coder.trellis import STRIP

Array = NDArray[Any]

TRELLIS = 1 << 5  # of a class's kind: two bits lie below those put aside; the bits under it say how many are
WARPS = 4


@dataclass(frozen=True)
class Strips:
    """Where strips lie and of which class each code is, on the device.

    starts: int64 [S + 1]; base, first_row: int64 [S], rows: int16, as of `contexts_by_strip`: what holds of the class of
    code i of strip s is entry base[s] + rows[first_row[s] + i] of a table. symbols: codes of all strips.
    """

    starts: Tensor
    base: Tensor
    first_row: Tensor
    rows: Tensor
    symbols: int

    def __len__(self) -> int:
        return len(self.base)


def restore_reference(
    codes: Tensor, sums: Sequence[ClassSums], layouts: Sequence[Layout], middles: bytes, escapes: Array
) -> list[Tensor]:
    """See `restore`; matrices are whole."""
    return [
        torch.from_numpy(m).to(codes.device) for m in restored(codes.cpu().numpy(), sums, layouts, middles, escapes)
    ]


def restore(
    codes: Tensor,
    strips: Strips,
    sums: Sequence[ClassSums],
    layouts: Sequence[Layout],
    middles: bytes,
    escapes: Array,
) -> list[Tensor]:
    """Each matrix's codes in strip order, by the kernels, whatever the device: int16, and int32 where one was patched.

    codes: int16 [N], what the coder gave; the rest as in `pgolf.packer.coder.stream.restored`. Raises ArtifactError.
    """
    kinds = [
        classes.classes_of(s.values, y.trellis)[1] | TRELLIS * (y.trellis > 0)
        for s, y in zip(sums, layouts, strict=True)
    ]
    sizes = np.array([[y.spread.shape[0] * y.spread.shape[1], _strips_of(y)] for y in layouts], np.int64).reshape(-1, 2)
    ends = np.cumsum(sizes, 0)
    kind, fields, listed, last = together(
        [
            torch.from_numpy(np.concatenate([np.zeros(0, np.uint8), *kinds]).astype(np.uint8)),
            torch.frombuffer(bytearray(middles + bytes(4)), dtype=torch.uint8),
            torch.from_numpy(np.append(escapes, 0).astype(np.int32)),
            torch.from_numpy(ends[:, 1].copy()),
        ],
        codes.device,
    )
    firsts = launch_count(codes, strips, kind)
    until = firsts[last].cpu().numpy()
    bits, found = until[-1] if len(until) else (0, 0)
    if found != len(escapes):
        raise ArtifactError("escapes are missing or left over: the artifact is damaged")
    aside.check_all_read(middles, int(bits))
    changed: list[bool] = np.atleast_1d(np.diff(until, axis=0, prepend=0).any(1)).tolist()
    return [
        launch_restore(codes, strips, kind, firsts, fields, listed, int(end[1] - size[1]), int(size[1]), int(size[0]))
        if patch
        else codes[int(end[0] - size[0]) : int(end[0])]
        for patch, size, end in zip(changed, sizes, ends, strict=True)
    ]


def _strips_of(layout: Layout) -> int:
    rows, cols = layout.spread.shape
    return -(-rows // STRIP) * cols


def launch_count(codes: Tensor, strips: Strips, kind: Tensor) -> Tensor:
    """int64 [S + 1, 2]: bits put aside and escapes before each strip, and in all."""
    counts = torch.zeros(len(strips) + 1, 2, dtype=torch.int64, device=codes.device)
    if len(strips):
        launch(
            count_kernel, (len(strips),), codes, strips.starts, strips.base, strips.first_row, strips.rows, kind,
            counts[1:], BLOCK=STRIP, num_warps=WARPS,
        )  # fmt: skip
    return counts.cumsum(0)


def launch_restore(
    codes: Tensor,
    strips: Strips,
    kind: Tensor,
    firsts: Tensor,
    fields: Tensor,
    listed: Tensor,
    first: int,
    count: int,
    size: int,
) -> Tensor:
    """int32 [size]: the codes of `count` strips from `first`. firsts: of `launch_count`; fields: bytes of the bits put
    aside, four more than there are; listed: int32, the escapes."""
    out = torch.empty(size, dtype=torch.int32, device=codes.device)
    launch(
        restore_kernel, (count,), codes, strips.starts, strips.base, strips.first_row, strips.rows, kind, firsts, fields,
        listed, out, first, BLOCK=STRIP, num_warps=WARPS,
    )  # fmt: skip
    return out


@jit
def count_kernel(codes, starts, base, first_row, rows, kind, counts, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton gives the types
    """A strip a program: the bits that its codes put aside, and its escapes."""
    strip = tl.program_id(0).to(tl.int64)
    _, escaped, width, _, _ = loaded(codes, starts, base, first_row, rows, kind, strip, BLOCK)
    tl.store(counts + 2 * strip, tl.sum(width, 0).to(tl.int64))
    tl.store(counts + 2 * strip + 1, tl.sum(escaped.to(tl.int32), 0).to(tl.int64))


@jit_for_any("first")
def restore_kernel(  # type: ignore[no-untyped-def]  # Triton gives the types
    codes, starts, base, first_row, rows, kind, firsts, fields, listed, out, first, BLOCK: tl.constexpr
):  # fmt: skip
    """A strip a program; see `restore`. The arithmetic is that of `aside.lengthen` and `aside.read`."""
    strip = first + tl.program_id(0).to(tl.int64)
    short, escaped, width, low, inside = loaded(codes, starts, base, first_row, rows, kind, strip, BLOCK)
    bit = tl.load(firsts + 2 * strip) + (tl.cumsum(width, 0) - width).to(tl.int64)
    wide = width > 0
    window = tl.zeros((BLOCK,), tl.uint32)
    for k in tl.static_range(4):
        byte = tl.load(fields + (bit >> 3) + k, wide, other=0)
        window = (window << 8) | byte.to(tl.uint32)
    down = tl.where(wide, 32 - (bit & 7).to(tl.int32) - width, 0)
    middle = (window >> down.to(tl.uint32)).to(tl.int32) & ((1 << width) - 1)
    code = ((((short >> low) << width) | middle) << low) | (short & ((1 << low) - 1))
    place = tl.load(firsts + 2 * strip + 1) + tl.cumsum(escaped.to(tl.int32), 0).to(tl.int64) - 1
    code = tl.where(escaped, tl.load(listed + place, escaped, other=0), code)
    at = tl.load(starts + strip) - tl.load(starts + first) + tl.arange(0, BLOCK)
    tl.store(out + at, code, inside)


@jit
def loaded(codes, starts, base, first_row, rows, kind, strip, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton gives the types
    """Of each code of a strip: int32, whether it is an escape, how many bits are put aside, the bits below them, and
    whether it is one."""
    i = tl.arange(0, BLOCK)
    start = tl.load(starts + strip)
    inside = i < tl.load(starts + strip + 1) - start
    code = tl.load(codes + start + i, inside, other=0).to(tl.int32)
    row = tl.load(rows + tl.load(first_row + strip) + i, inside, other=0).to(tl.int64) & 0xFFFF
    of_class = tl.load(kind + tl.load(base + strip) + row, inside, other=0).to(tl.int32)
    escaped = inside & (code == -32768)
    width = tl.where(escaped, 0, of_class & 31)
    return code, escaped, width, 1 + (of_class >> 5), inside
