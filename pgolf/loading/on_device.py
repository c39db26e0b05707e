"""An artifact on the GPU: the words go there, and only weights or packed codes come out.

The file is parsed and checked by the packer as on any machine; `OnDevice` takes over where the coder's lanes begin, and
codes never exist on the host. With a general coder (`--coder brotli`) there is nothing to decode in parallel: codes are
made on the host and moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.kernels.dequant import dequant
from pgolf.kernels.launch import FLOATS
from pgolf.kernels.packed import width_of
from pgolf.kernels.rans_decode import Decoded, rans_decode
from pgolf.kernels.staging import together
from pgolf.kernels.strips import restore, restore_reference
from pgolf.loading.kept import kept
from pgolf.packer.coder import stream
from pgolf.packer.coder.layout import CodedLanes
from pgolf.packer.coder.loops import Loops
from pgolf.packer.coder.strips import ClassSums
from pgolf.packer.coder.trellis import STRIP
from pgolf.packer.format.artifact import Entry
from pgolf.packer.plane import Plane

Array = NDArray[Any]


@dataclass(frozen=True)
class OnDevice(stream.Device):
    """The packer's stand-in for numpy: codes are int16 tensors on `device`, int32 where something was patched."""

    device: torch.device

    def decode(self, coded: CodedLanes, loops: Loops | None) -> Decoded:
        return rans_decode(coded, self.device, loops)

    def restored(
        self,
        codes: Decoded,
        sums: Sequence[ClassSums],
        layouts: Sequence[stream.Layout],
        middles: bytes,
        escapes: Array,
    ) -> list[Tensor]:
        if codes.strips is None:
            return restore_reference(codes.codes, sums, layouts, middles, escapes)
        parts = restore(codes.codes, codes.strips, sums, layouts, middles, escapes)
        return [self.from_strips(part, layout.spread.shape) for part, layout in zip(parts, layouts, strict=True)]

    def from_strips(self, part: Tensor, shape: tuple[int, int]) -> Tensor:
        """Of up to STRIP rows a view; of more, all whole blocks of strips are turned at once."""
        rows, cols = shape
        if rows <= STRIP:
            return part.view(cols, rows).T
        out = torch.empty(shape, dtype=part.dtype, device=part.device)
        blocks, whole = rows // STRIP, rows - rows % STRIP
        out[:whole].view(blocks, STRIP, cols).copy_(part[: whole * cols].view(blocks, cols, STRIP).mT)
        out[whole:].copy_(part[whole * cols :].view(cols, rows - whole).T)
        return out

    def checksum(self, planes: Sequence[Plane]) -> int:
        moved = [codes_on(plane, self.device) for plane in planes]
        starts = accumulate((matrix.numel() for matrix in moved), initial=0)
        sums = [_partial_checksum(matrix, start) for matrix, start in zip(moved, starts, strict=False)]
        return int(torch.stack(sums).sum()) % (1 << 64) if sums else 0

    def tensors(self, entries: Sequence[Entry]) -> list[Tensor]:
        """Entries -> tensors of their dtypes and shapes, by the reconstruction rule; of an integer dtype the codes, which
        float32 would round. All scales and kept tensors go to the device in one copy."""
        moved = iter(self.together([_on_host(entry) for entry in entries]))
        return [self._tensor(entry, next(moved)) for entry in entries]

    def together(self, groups: Sequence[Sequence[Tensor | None]]) -> list[list[Tensor | None]]:
        """Groups of tensors of the host, all moved at once; what is None stays so."""
        moved = iter(together([t for group in groups for t in group if t is not None], self.device))
        return [[None if t is None else next(moved) for t in group] for group in groups]

    def _tensor(self, entry: Entry, moved: Sequence[Tensor | None]) -> Tensor:
        dtype: torch.dtype = getattr(torch, entry.dtype)
        if entry.planes is None:
            (kept,) = moved
            assert kept is not None
            return kept.clone()  # with storage of its own
        codes = [codes_on(plane, self.device) for plane in entry.planes]
        if not dtype.is_floating_point:
            return torch.stack(codes).reshape(entry.shape).to(dtype)
        kind = dtype if dtype in FLOATS else torch.float32
        stack = torch.empty(len(codes), *codes[0].shape, dtype=kind, device=self.device)
        for matrix, row, col, out in zip(codes, moved[::2], moved[1::2], stack, strict=True):
            dequant(matrix, row, col, out=out)
        return stack.reshape(entry.shape).to(dtype)


def _on_host(entry: Entry) -> list[Tensor | None]:
    """What of an entry is moved: its own bytes, or the row and column scales of each plane."""
    return [kept(entry)] if entry.planes is None else scales_of(entry.planes)


def scales_of(planes: Sequence[Plane]) -> list[Tensor | None]:
    """Row scales [R] and column scales [C] of one plane after another, float32 on the host."""
    scales = [scale for plane in planes for scale in (plane.row_scale, plane.col_scale)]
    return [None if scale is None else torch.from_numpy(scale.values()) for scale in scales]


def _partial_checksum(codes: Tensor, start: int) -> Tensor:
    """int64 []: Σ code_i · (2 (start + i) + 1) mod 2^64, which int64 gives by itself."""
    flat = codes.reshape(-1).long()
    weights = torch.arange(2 * start + 1, 2 * (start + flat.numel()) + 1, 2, device=flat.device)
    return (flat * weights).sum()


def codes_on(plane: Plane, device: torch.device) -> Tensor:
    """Codes of numpy (which may be a view of the file, where torch wants none) or of a device, on a device."""
    codes: Any = plane.codes
    found: Tensor = codes if isinstance(codes, Tensor) else torch.from_numpy(np.require(codes, requirements="W"))
    return found.to(device)


def widths(groups: Sequence[Sequence[Plane]]) -> list[int | None]:
    """The bits that hold all codes of each group of planes, as `width_of`, none of them empty; a device is asked once."""
    codes: list[list[Any]] = [[plane.codes for plane in group] for group in groups]
    ends = [end for group in codes for matrix in group for end in (matrix.min(), matrix.max())]
    there = bool(ends) and isinstance(ends[0], Tensor)
    found = iter(torch.stack([end.int() for end in ends]).tolist() if there else map(int, ends))
    reach = [[(next(found), next(found)) for _ in group] for group in codes]
    return [width_of(min(low for low, _ in group), max(high for _, high in group)) for group in reach]
