"""Which matrices share probability tables, and how the tables are numbered.

What will surprise you:
* A slot is 2 · class + parity. A family holds one table for each slot that its matrices use; families 0 (scalar) and 1
  (trellis) are shared by all matrices, and one whose histograms are its own gets a private family, where that pays.
* In a trellis family both parities of a class have tables, because the decoder adds the parity to the table's number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError
from pgolf.packer.spread import CLASSES, entropy_bits

Array = NDArray[Any]

SLOTS = 2 * CLASSES
MAX_TABLES = 510  # a context's nine bits can name them, and one more number says "no table"
NO_TABLE = 511
SHARED_SCALAR, SHARED_TRELLIS = 0, 1
SYMBOL_BITS = 10.0  # rough cost of one more symbol in one more table
BITMAP_BYTES = (SLOTS + 7) // 8


def choose(counts: Sequence[Array], trellis: Sequence[bool]) -> list[int]:
    """The family of each matrix from its counts [SLOTS, 256]: private where that saves more than its tables cost."""
    families = [SHARED_TRELLIS if t else SHARED_SCALAR for t in trellis]
    gains = []
    for family in (SHARED_SCALAR, SHARED_TRELLIS):
        members = [i for i, f in enumerate(families) if f == family]
        shared = sum((counts[i] for i in members), np.zeros((SLOTS, 256), np.int64))
        for i in members if len(members) > 1 else []:
            gains.append((_saving(counts[i], shared), i))
    room, private = MAX_TABLES - 2 * SLOTS, 2
    for gain, i in sorted(gains, reverse=True):
        tables = 2 * int(counts[i].any(1).sum())
        if gain > 0 and tables <= room:
            families[i], private, room = private, private + 1, room - tables
    return families


def _saving(counts: Array, shared: Array) -> float:
    """Bits that a matrix saves with tables of its own."""
    used = counts.any(1)
    own, all_of = counts[used], shared[used]
    common = own * (np.log2(all_of.sum(1, keepdims=True)) - np.log2(np.maximum(all_of, 1)))
    return float(common.sum()) - entropy_bits(own) - SYMBOL_BITS * float((own > 0).sum())


@dataclass(frozen=True)
class Directory:
    """used: bool [F, SLOTS], which slots of each family have a table; tables are numbered family by family."""

    used: Array

    @staticmethod
    def of(counts: Sequence[Array], families: Sequence[int], trellis: Sequence[bool]) -> Directory:
        """The tables that matrices with these counts need."""
        used = np.zeros((max(families, default=-1) + 1, SLOTS), bool)
        for count, family, paired in zip(counts, families, trellis, strict=True):
            mine = np.asarray(count.any(1))
            used[family] |= np.repeat(mine[0::2] | mine[1::2], 2) if paired else mine
        return Directory(used)

    @property
    def tables(self) -> int:
        """How many tables there are."""
        return int(self.used.sum())

    def numbers(self, family: int) -> Array:
        """int64 [SLOTS]: the table's number of each slot, NO_TABLE where there is none."""
        if not 0 <= family < len(self.used):
            return np.full(SLOTS, NO_TABLE)
        mine: Array = self.used[family]
        return np.where(mine, int(self.used[:family].sum()) + np.cumsum(mine) - 1, NO_TABLE)

    def totals(self, counts: Sequence[Array], families: Sequence[int]) -> Array:
        """int64 [tables, 256]: counts of each table's symbols over all matrices that share it."""
        by_slot = np.zeros((len(self.used), SLOTS, 256), np.int64)
        for count, family in zip(counts, families, strict=True):
            by_slot[family] += count
        totals: Array = by_slot[self.used]
        return totals

    def parities(self) -> list[int]:
        """The parity that each table is for."""
        return [int(slot) & 1 for slot in np.nonzero(self.used)[1]]

    def dump(self) -> bytes:
        """One byte: how many families; then a bitmap for each, slot 0 in the lowest bit of the first byte."""
        return bytes([len(self.used)]) + np.packbits(self.used, axis=1, bitorder="little").tobytes()

    @staticmethod
    def parse(data: bytes) -> tuple[Directory, bytes]:
        """(directory, bytes behind it). Raises ArtifactError."""
        end = 1 + BITMAP_BYTES * data[0] if data else 0
        bits = np.unpackbits(np.frombuffer(data[1:end], np.uint8), bitorder="little")
        if not data or len(data) < end or bits.sum() > MAX_TABLES:
            raise ArtifactError("the directory of probability tables is malformed: the artifact is damaged")
        used = bits.reshape(-1, 8 * BITMAP_BYTES).astype(bool)
        if used[:, SLOTS:].any():
            raise ArtifactError("the directory of probability tables names unknown slots: the artifact is damaged")
        return Directory(used[:, :SLOTS]), data[end:]
