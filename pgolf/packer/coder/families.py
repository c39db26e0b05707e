"""Which matrices share probability tables, and how the tables are numbered.

A slot is 2 · class + parity. A family holds one table for each slot that its matrices use; families 0 (scalar) and 1
(trellis) are shared by all matrices, and one whose histograms are its own gets a private family, where that pays.
Odd families are for trellis matrices: their codes are 2 · value + parity, and both parities of a class have tables,
because the decoder adds the parity to the table's number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError
from pgolf.packer.coder.classes import CLASSES, entropy_bits
from pgolf.packer.coder.tables import ESCAPED, ESCAPES, OFFSET

Array = NDArray[Any]

SLOTS = 2 * CLASSES
MAX_TABLES = 255  # a context's eight bits can name them and one that is the decoder's own
MAX_FAMILIES = 256
SHARED_SCALAR, SHARED_TRELLIS = 0, 1
SYMBOL_BITS = 10.0  # rough cost of one more symbol in one more table
BITMAP_BYTES = SLOTS // 8


def choose_families(counts: Sequence[Array], trellis: Sequence[bool]) -> list[int]:
    """The family of each matrix from its counts [SLOTS, 256]: private where that saves more than its tables cost."""
    families = [SHARED_TRELLIS if t else SHARED_SCALAR for t in trellis]
    gains = []
    for family in (SHARED_SCALAR, SHARED_TRELLIS):
        members = [i for i, f in enumerate(families) if f == family]
        shared = sum((counts[i] for i in members), np.zeros((SLOTS, 256), np.int64))
        gains += [(_saving(counts[i], shared), i) for i in members]
    room, private = MAX_TABLES - SLOTS - SLOTS // 2, {False: 2, True: 3}
    for gain, i in sorted(gains, reverse=True):
        tables = 2 * int(counts[i].any(1).sum())
        if gain > 0 and tables <= room and private[trellis[i]] < MAX_FAMILIES:
            families[i], room = private[trellis[i]], room - tables
            private[trellis[i]] += 2
    return families


def _saving(counts: Array, shared: Array) -> float:
    """Bits that a matrix saves with tables of its own."""
    used = counts.any(1)
    own, all_of = counts[used], shared[used]
    common = own * (np.log2(all_of.sum(1, keepdims=True)) - np.log2(np.maximum(all_of, 1)))
    return float(common.sum()) - entropy_bits(own) - SYMBOL_BITS * float((own > 0).sum())


def directory(counts: Sequence[Array], families: Sequence[int]) -> Array:
    """bool [F, SLOTS]: which slots of each family need a table, for matrices with these counts.

    Tables are numbered family by family.
    """
    used = np.zeros((max(families, default=-1) + 1, SLOTS), bool)
    for count, family in zip(counts, families, strict=True):
        mine = np.asarray(count.any(1))
        used[family] |= np.repeat(mine[0::2] | mine[1::2], 2) if family & 1 else mine
    return used


def totals(used: Array, counts: Sequence[Array], families: Sequence[int]) -> Array:
    """int64 [tables, 256]: counts of each table's symbols over all matrices that share it."""
    by_slot = np.zeros((len(used), SLOTS, 256), np.int64)
    for count, family in zip(counts, families, strict=True):
        by_slot[family] += count
    every: Array = by_slot[used]
    return every


def parities(used: Array) -> list[int]:
    """The parity that each table is for."""
    return [int(slot) & 1 for slot in np.nonzero(used)[1]]


def table_numbers(used: Array) -> Array:
    """int64 [F, SLOTS]: the number of each slot's table; of no meaning where there is none."""
    return np.cumsum(used).reshape(used.shape) - 1


def table_codes(used: Array) -> Array:
    """int16 [tables · 256]: the code that each symbol of each table stands for, ESCAPED where it is an escape."""
    family, slot = np.nonzero(used)
    symbol = np.arange(256)[:, None]
    codes = symbol - OFFSET << (family & 1) | slot & family & 1
    return np.where(symbol < ESCAPES, ESCAPED, codes).T.astype(np.int16).ravel()


def dump(used: Array) -> bytes:
    """A bitmap for each family, slot 0 in the lowest bit of the first byte."""
    return np.packbits(used, axis=1, bitorder="little").tobytes()


def parse(data: bytes) -> Array:
    """The inverse of `dump`. Raises ArtifactError."""
    used = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").reshape(-1, SLOTS) > 0
    if used.sum() > MAX_TABLES or (used[1::2, 0::2] != used[1::2, 1::2]).any():
        raise ArtifactError("the directory of probability tables is malformed: the artifact is damaged")
    return used
