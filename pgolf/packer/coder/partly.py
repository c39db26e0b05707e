"""One matrix of a rANS stream without the others: of its lanes those that hold it, of the rest only what must be counted.

Where a matrix's escapes and bits put aside begin is not told: what the matrices before it took is counted, once, and only
for one that has any. Matrices read in order are therefore decoded once each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.packer.coder import classes, rans, stream, tables
from pgolf.packer.coder.loops import Loops
from pgolf.packer.coder.stream import Device, Layout
from pgolf.packer.coder.strips import ClassSums, strip_starts

Array = NDArray[Any]


class Matrices:
    """The matrices of a stream, each by its number. Raises ArtifactError, as `stream.decode`, for what is asked for."""

    def __init__(
        self,
        sections: Mapping[str, bytes],
        name: str,
        layouts: Sequence[Layout],
        loops: Loops | None = None,
        device: Device | None = None,
    ) -> None:
        self._sections, self._name, self._layouts = sections, name, layouts
        self._loops, self._device = loops, device
        self._coded = stream.coded_lanes(sections, name, layouts)
        rans.check_lanes(self._coded)
        sizes = [rows * cols for rows, cols in (layout.spread.shape for layout in layouts)]
        self._starts = np.cumsum([0, *sizes])
        self._bounds, self._ends = self._coded.bounds, np.concatenate([[0], self._coded.ends()])
        self._took: dict[int, tuple[int, int]] = {}  # matrix -> bits put aside, escapes

    def matrix(self, number: int) -> Any:
        """Codes [R, C], as `stream.decode` gives them."""
        part = self._symbols(number)
        bits, escapes = self._count(number, part)
        bit, first = 0, 0
        if bits or escapes:
            before = [self._counted(i) for i in range(number)]
            bit, first = (sum(side) for side in zip((0, 0), *before, strict=True))
        held = np.frombuffer(self._sections.get(f"{self._name}.escapes", b""), "<i4")[first : first + escapes]
        middles = _bits_of(self._sections.get(f"{self._name}.aside", b""), bit, bit + bits)
        own = [self._coded.sums[number]], [self._layouts[number]]
        restored = self._device.restored if self._device else stream.restored
        return restored(part, *own, middles, held)[0]

    def _symbols(self, number: int) -> Any:
        """What the coder's lanes say of one matrix: int16 [R · C] in strip order."""
        start, stop = self._starts[number : number + 2]
        if start == stop:
            return np.zeros(0, np.int16)
        first = int(np.searchsorted(self._bounds, start, "right")) - 1
        last = int(np.searchsorted(self._bounds, stop, "left"))
        begins, ends = self._bounds[first], self._bounds[last]
        low = int(np.searchsorted(self._starts, begins, "right")) - 1
        high = int(np.searchsorted(self._starts, ends, "left"))
        base = self._starts[low]
        lanes = replace(
            self._coded,
            states=self._coded.states[first:last],
            counts=self._coded.counts[first:last],
            words=self._coded.words[self._ends[first] : self._ends[last]],
            sums=self._coded.sums[low:high],
            lookups=self._coded.lookups[low:high],
            starts=strip_starts(layout.spread.shape for layout in self._layouts[low:high]),
            bounds=self._bounds[first : last + 1] - base,
        )
        codes = self._device.decode(lanes, self._loops) if self._device else rans.decode(lanes, self._loops)
        return codes[start - base : stop - base]

    def _counted(self, number: int) -> tuple[int, int]:
        """(bits put aside, escapes) of one matrix, decoded only where nothing else tells them."""
        if number in self._took:
            return self._took[number]
        return self._count(number, self._symbols(number) if self._sections.get(f"{self._name}.escapes") else None)

    def _count(self, number: int, part: Any | None) -> tuple[int, int]:
        """The same from its symbols; None: nothing in the stream is an escape."""
        sums, layout = self._coded.sums[number], self._layouts[number]
        _, widths = classes.classes_of(sums.values, layout.trellis)
        where = np.zeros(0, np.int64) if part is None else np.flatnonzero(np.asarray(part) == tables.ESCAPED)
        bits = _all_bits(sums, widths)
        if bits and where.size:
            bits -= int(widths[sums.where()[where]].sum(dtype=np.int64))
        self._took[number] = bits, where.size
        return self._took[number]


def _bits_of(data: bytes, start: int, stop: int) -> bytes:
    """A run of bits as bytes of its own, zeros at the end."""
    some = np.unpackbits(np.frombuffer(data, np.uint8)[start >> 3 : (stop + 7) >> 3])
    return np.packbits(some[start & 7 : (start & 7) + stop - start]).tobytes()


def _all_bits(sums: ClassSums, widths: Array) -> int:
    """Σ widths over all entries of a matrix, from how often each row and column class occurs."""
    if not widths.any():
        return 0
    tall, wide = np.bincount(sums.rows), np.bincount(sums.cols)
    return sum(
        int(count) * int((widths[row : row + len(wide)].astype(np.int64) * wide[: len(widths) - row]).sum())
        for row, count in enumerate(tall)
        if count
    )
