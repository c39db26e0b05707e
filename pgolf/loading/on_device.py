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
from pgolf.kernels.rans_decode import rans_decode
from pgolf.packer.coder import aside, stream
from pgolf.packer.coder.layout import CodedLanes
from pgolf.packer.coder.loops import Loops
from pgolf.packer.coder.tables import ESCAPED
from pgolf.packer.coder.trellis import STRIP
from pgolf.packer.plane import Plane, Scale

Array = NDArray[Any]


@dataclass(frozen=True)
class OnDevice(stream.Device):
    """The packer's stand-in for numpy: codes are int16 tensors on `device`, int32 where something was patched."""

    device: torch.device

    def decode(self, coded: CodedLanes, loops: Loops | None) -> Tensor:
        return rans_decode(coded, self.device, loops)

    def escaped(self, part: Tensor) -> Array:
        found: Array = (part == ESCAPED).nonzero()[:, 0].cpu().numpy()
        return found

    def patched(
        self, part: Tensor, wide: Array, middles: Array, widths: Array, low: int, escaped: Array, escapes: Array
    ) -> Tensor:
        part, where = part.int(), self._moved(wide)
        part[where] = aside.lengthen(part[where], self._moved(middles).int(), self._moved(widths), low)
        part[self._moved(escaped)] = self._moved(escapes)
        return part

    def from_strips(self, part: Tensor, shape: tuple[int, int]) -> Tensor:
        rows, cols = shape
        out = torch.empty(shape, dtype=part.dtype, device=part.device)
        for top in range(0, rows if cols else 0, STRIP):
            block = out[top : top + STRIP]
            block.copy_(part[top * cols : top * cols + block.numel()].view(cols, len(block)).T)
        return out

    def checksum(self, planes: Sequence[Plane]) -> int:
        moved = [_tensor(plane.codes, self.device) for plane in planes]
        starts = accumulate((matrix.numel() for matrix in moved), initial=0)
        sums = [_partial_checksum(matrix, start) for matrix, start in zip(moved, starts, strict=False)]
        return int(torch.stack(sums).sum()) % (1 << 64) if sums else 0

    def dense(self, planes: Sequence[Plane], dtype: torch.dtype) -> Tensor:
        """[planes, R, C] weights, by the reconstruction rule; of an integer dtype the codes, which float32 would round."""
        if not dtype.is_floating_point:
            return torch.stack([_tensor(plane.codes, self.device) for plane in planes])
        stack = torch.empty(
            len(planes), *planes[0].codes.shape, dtype=dtype if dtype in FLOATS else torch.float32, device=self.device
        )
        for plane, out in zip(planes, stack, strict=True):
            dequant(*parts(plane, self.device), out=out)
        return stack

    def _moved(self, array: Array) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self.device)


def _partial_checksum(codes: Tensor, start: int) -> Tensor:
    """int64 []: Σ code_i · (2 (start + i) + 1) mod 2^64, which int64 gives by itself."""
    flat = codes.reshape(-1).long()
    weights = torch.arange(2 * start + 1, 2 * (start + flat.numel()) + 1, 2, device=flat.device)
    return (flat * weights).sum()


def parts(plane: Plane, device: torch.device) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(codes, row scales, column scales) of a plane on `device`; its codes may be there already."""
    codes = _tensor(plane.codes, device)
    return codes, _values(plane.row_scale, device), _values(plane.col_scale, device)


def _tensor(codes: Any, device: torch.device) -> Tensor:
    """Codes of numpy (which may be a view of the file, where torch wants none) or of a device, on a device."""
    found = codes if isinstance(codes, Tensor) else torch.from_numpy(np.require(codes, requirements="W"))
    return found.to(device)


def _values(scale: Scale | None, device: torch.device) -> Tensor | None:
    return None if scale is None else torch.from_numpy(scale.values()).to(device)
