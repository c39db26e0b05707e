"""Classes of entries: which table codes an entry, the symbol that its code becomes, and the cheapest classes for a plane.

A class is four times log2 of the codes' standard deviation, and the class of an entry is simply rows[i] + cols[j],
clipped. So classes of all planes mean the same thing and planes share tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pgolf.packer.coder import aside
from pgolf.packer.coder.loops import Loops
from pgolf.packer.coder.tables import ESCAPES, OFFSET
from pgolf.packer.plane import SPREAD_STEPS, Plane, Spread

Array = NDArray[Any]
Mode = Literal["one", "rows", "cols", "both"]

LOWEST = -22  # codes that are nearly always zero; with WIDEST it makes 40 classes
WIDEST = 17  # a value's spread of 2^(17/4) = 19 still fits a byte symbol; wider classes put bits aside
CLASSES = WIDEST + 1 - LOWEST
FLOOR = np.float32(2.0 ** (2 * LOWEST / SPREAD_STEPS))  # second moment of the lowest class
TABLE_BITS = 60.0  # rough cost of one more table, for choosing between modes
SAMPLE = 1 << 17  # entries that a choice between modes looks at


def classes_of(sums: Array, trellis: int) -> tuple[Array, Array]:
    """Table class (0..CLASSES-1) and bits put aside (int8) for values (int64) of rows[i] + cols[j].

    Wide classes keep their lowest bit and their top bits in the symbol and put the bits between them aside, raw: a
    Gaussian is flat on that scale, and the trellis needs the lowest bit while decoding.
    A trellis code is 2·value + parity, so its value is an octave narrower than the code.
    """
    classes = sums - SPREAD_STEPS if trellis else sums
    widths = np.clip((classes - WIDEST + SPREAD_STEPS - 1) // SPREAD_STEPS, 0, aside.MAX_WIDTH)
    classes = np.clip(classes - SPREAD_STEPS * widths, LOWEST, WIDEST) - LOWEST
    return classes, widths.astype(np.int8)


def narrowed(codes: Array) -> Array:
    """`codes` as int16 where they fit, as int32 otherwise."""
    if codes.dtype == np.int16:
        return codes
    fits = not codes.size or (codes.min() >= -(1 << 15) and codes.max() < 1 << 15)
    return codes.astype(np.int16 if fits else np.int32, copy=False)


def symbols(values: Array) -> Array:
    """uint8 [N]: value + OFFSET; where that is no byte above the escapes, the escape of the same parity."""
    if not values.size or (values.min() >= ESCAPES - OFFSET and values.max() < OFFSET):
        return values.astype(np.uint8) ^ np.uint8(OFFSET)
    fits = (values >= ESCAPES - OFFSET) & (values < OFFSET)
    return np.where(fits, values.astype(np.uint8) ^ np.uint8(OFFSET), (values & 1).astype(np.uint8))


def count(slots: Array, symbols: Array, size: int) -> Array:
    """int64 [size, 256]: how often each symbol stands in each slot (both uint8 [N])."""
    pairs = np.bincount(slots.astype(np.uint16) << 8 | symbols, minlength=size * 256)
    return pairs.reshape(size, 256)


def estimate_spread(square: Array) -> Spread:
    """Spread classes that fit the squared codes [R, C]: rows and columns in turn, then rounded.

    einsum, not matmul: a BLAS result may depend on its number of threads.
    """
    rows, cols = square.shape
    row, col = np.ones(rows, np.float32), np.ones(cols, np.float32)
    for _ in range(2):
        row = np.maximum(np.einsum("ij,j->i", square, 1 / col) / np.float32(cols), FLOOR)
        col = np.maximum(np.einsum("i,ij->j", 1 / row, square) / np.float32(rows), FLOOR)
    col_class = _quarter_octaves(col / np.exp(np.mean(np.log(col))))
    weight = np.exp2(-2.0 / SPREAD_STEPS * col_class).astype(np.float32)
    row = np.maximum(np.einsum("ij,j->i", square, weight) / np.float32(cols), FLOOR)
    return Spread(_quarter_octaves(row), col_class)


def _quarter_octaves(second_moment: Array) -> Array:
    return np.rint(0.5 * SPREAD_STEPS * np.log2(second_moment)).astype(np.int32)


@dataclass(frozen=True)
class Choice:
    """The cheapest mode of a plane and the spread that goes with it (zeros where a mode has no classes)."""

    mode: Mode
    spread: Spread


def choose_spread(plane: Plane, loops: Loops | None = None) -> Choice:
    """Row, column, both or no classes, by the entropy of the classes' histograms plus the indices' own cost."""
    codes = narrowed(plane.codes)
    if plane.trellis:  # the quantizer's own classes decide which entries are on the trellis
        if plane.spread is None:
            raise ValueError("a trellis plane says nothing of its spread")
        return Choice("both", plane.spread)
    no_rows, no_cols = (np.zeros(n, np.int32) for n in codes.shape)
    if codes.size == 0:
        return Choice("one", Spread(no_rows, no_cols))
    square = np.square(codes, dtype=np.float32)
    row, col = square.mean(1), square.mean(0)
    overall = int(_quarter_octaves(np.maximum(row.mean(), FLOOR)))
    candidates = [
        Choice("one", Spread(no_rows + overall, no_cols)),
        Choice("rows", Spread(_quarter_octaves(np.maximum(row, FLOOR)), no_cols)),
        Choice("cols", Spread(no_rows, _quarter_octaves(np.maximum(col, FLOOR)))),
        Choice("both", plane.spread or estimate_spread(square)),
    ]
    keep = slice(None, None, max(1, codes.size // SAMPLE))
    return min(candidates, key=lambda c: _cost(codes, c.spread, keep, loops))


def _cost(codes: Array, spread: Spread, keep: slice, loops: Loops | None) -> float:
    """Bits of coding a plane under a spread, from the rows in `keep`."""
    sampled = codes[keep].ravel()
    sums = (spread.rows[keep, None] + spread.cols[None, :]).ravel()
    lowest = int(sums.min())
    classes, widths = classes_of(np.arange(lowest, int(sums.max()) + 1), trellis=0)
    where = sums - lowest
    put_aside = widths[where].astype(np.int32) if widths.any() else None
    values = sampled if put_aside is None else aside.shorten(sampled.astype(np.int32), put_aside, 1)
    counts = (loops.count if loops else count)(classes.astype(np.uint8)[where], symbols(values), CLASSES)
    bits = entropy_bits(counts) + (float(put_aside.sum(dtype=np.int64)) if put_aside is not None else 0.0)
    tables = TABLE_BITS * int(counts.any(1).sum())
    return bits * codes.size / sampled.size + tables + index_bits(spread.rows) + index_bits(spread.cols)


def entropy_bits(counts: Array) -> float:
    """Bits of coding each row of `counts` [T, 256] with its own ideal table."""
    n = counts.astype(np.float64)
    total = n.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(n > 0, n * np.log2(total / n), 0.0).sum())


def index_bits(index: Array) -> float:
    """Bits of coding an index vector by its own histogram (and a little for the histogram)."""
    counts = np.unique(index, return_counts=True)[1]
    return entropy_bits(counts[None]) + (8.0 * len(counts) if len(counts) > 1 else 0.0)
