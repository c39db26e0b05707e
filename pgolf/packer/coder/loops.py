"""What the coder asks of whoever runs its loops over all symbols. `rans` and `classes` define each of them in numpy."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from pgolf.packer.coder.layout import CodedLanes

Array = NDArray[Any]


class Loops(Protocol):
    """Loops over arrays of numpy, of the same bits as those that define them; None stands for the definitions."""

    def encode(self, symbols: Array, tables_of: Array, bounds: Array, freqs: Array, /) -> tuple[Array, Array, Array]:
        """As `rans.encode_lanes`."""

    def decode(self, coded: CodedLanes, /) -> tuple[Array, Array, Array]:
        """As `rans.decode_lanes`."""

    def count(self, slots: Array, symbols: Array, size: int, /) -> Array:
        """As `classes.count`."""
