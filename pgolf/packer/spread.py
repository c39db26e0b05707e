"""Which probability table codes which entry: spread classes by row and column, and the symbol that a code becomes.

What will surprise you:
* A class is four times log2 of the codes' standard deviation, and the class of an entry is simply rows[i] + cols[j],
  clipped. So classes of all planes mean the same thing and planes share tables.
* Wide classes keep their lowest bit and their top bits in the symbol and put the bits between them aside, raw: a
  Gaussian is flat on that scale, and the trellis needs the lowest bit while decoding.
* Everything that depends on the sum rows[i] + cols[j] is looked up in a short table over the possible sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pgolf.packer.plane import SPREAD_STEPS, Plane, Spread
from pgolf.packer.tables import ESCAPES, OFFSET

Array = NDArray[Any]
Mode = Literal["one", "rows", "cols", "both"]

LOWEST = -5 * SPREAD_STEPS  # codes that are nearly always zero
WIDEST = 17  # a value's spread of 2^(17/4) = 19 still fits a byte symbol; wider classes put bits aside
CLASSES = WIDEST + 1 - LOWEST
FLOOR = np.float32(2.0 ** (2 * LOWEST / SPREAD_STEPS))  # second moment of the lowest class
TABLE_BITS = 60.0  # rough cost of one more table, for choosing between modes
SAMPLE = 1 << 17  # entries that a choice between modes looks at


def classes_of(sums: Array, trellis: int) -> tuple[Array, Array]:
    """Table class (int16, 0..CLASSES-1) and bits put aside (int8) for values of rows[i] + cols[j].

    A trellis code is 2·value + parity, so its value is an octave narrower than the code.
    """
    classes = sums.astype(np.int64) - (SPREAD_STEPS if trellis else 0)
    aside = np.clip(-((WIDEST - classes) // SPREAD_STEPS), 0, 24)
    classes = np.clip(classes - SPREAD_STEPS * aside, LOWEST, WIDEST) - LOWEST
    return classes.astype(np.int16), aside.astype(np.int8)


def symbols(values: Array, aside: Array | None) -> Array:
    """uint8 [N]: value without its middle bits, plus OFFSET; where that is no byte, an escape of the same parity.

    aside: bits put aside of each value, None for none.
    """
    if aside is not None:
        values = ((values >> (aside + 1)) << 1) | (values & 1)
    if not values.size or (values.min() >= ESCAPES - OFFSET and values.max() < OFFSET):
        return (values + OFFSET).astype(np.uint8)
    fits = (values >= ESCAPES - OFFSET) & (values < OFFSET)
    return np.where(fits, values + OFFSET, values & 1).astype(np.uint8)


def estimate(codes: Array) -> Spread:
    """Spread classes that fit the second moments of `codes` [R, C]: rows and columns in turn, then rounded."""
    square = np.square(codes, dtype=np.float32)
    row, col = np.ones(len(square), np.float32), np.ones(square.shape[1], np.float32)
    for _ in range(2):
        row = np.maximum(square @ (1 / col) / np.float32(len(col)), FLOOR)
        col = np.maximum((1 / row) @ square / np.float32(len(row)), FLOOR)
    cols = _quarter_octaves(col / np.exp(np.mean(np.log(col))))
    row = np.maximum(square @ np.exp2(-2.0 / SPREAD_STEPS * cols).astype(np.float32) / np.float32(len(col)), FLOOR)
    return Spread(_quarter_octaves(row), cols)


def _quarter_octaves(second_moment: Array) -> Array:
    return np.rint(0.5 * SPREAD_STEPS * np.log2(second_moment)).astype(np.int32)


@dataclass(frozen=True)
class Choice:
    """The cheapest mode of a plane and the spread that goes with it (zeros where a mode has no classes)."""

    mode: Mode
    spread: Spread


def choose(plane: Plane) -> Choice:
    """Row, column, both or no classes, by the entropy of the classes' histograms plus the indices' own cost."""
    codes = plane.codes
    if plane.trellis:  # the quantizer's own classes decide which entries are on the trellis
        assert plane.spread is not None
        return Choice("both", plane.spread)
    if codes.size == 0:
        return Choice("one", Spread(np.zeros(codes.shape[0], np.int32), np.zeros(codes.shape[1], np.int32)))
    both = plane.spread or estimate(codes)
    no_rows, no_cols = np.zeros_like(both.rows), np.zeros_like(both.cols)
    square = np.square(codes, dtype=np.float32)
    row, col = square.mean(1), square.mean(0)
    overall = int(_quarter_octaves(np.maximum(row.mean(), FLOOR)))
    candidates = [
        Choice("one", Spread(no_rows + overall, no_cols)),
        Choice("rows", Spread(_quarter_octaves(np.maximum(row, FLOOR)), no_cols)),
        Choice("cols", Spread(no_rows, _quarter_octaves(np.maximum(col, FLOOR)))),
        Choice("both", both),
    ]
    keep = slice(None, None, max(1, codes.size // SAMPLE))
    return min(candidates, key=lambda c: _cost(codes, c.spread, keep))


def _cost(codes: Array, spread: Spread, keep: slice) -> float:
    """Bits of coding a plane under a spread, from the rows in `keep`."""
    sampled = codes[keep]
    sums = (spread.rows[keep, None] + spread.cols[None, :]).ravel()
    lowest = int(sums.min())
    classes, aside = classes_of(np.arange(lowest, int(sums.max()) + 1), trellis=0)
    where = sums - lowest
    put_aside = aside[where] if aside.any() else None
    index = classes.astype(np.int32)[where] << 8 | symbols(sampled.ravel(), put_aside)
    counts = np.bincount(index, minlength=CLASSES * 256).reshape(CLASSES, 256)
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
