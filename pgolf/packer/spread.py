"""Which probability table codes which entry: spread classes by row and column, and the symbol that a code becomes.

What will surprise you:
* A class is four times log2 of the codes' standard deviation, and the class of an entry is simply rows[i] + cols[j],
  clipped. So classes of all planes mean the same thing and planes share tables.
* Wide classes keep their lowest bit and their top bits in the symbol and put the bits between them aside, raw: a
  Gaussian is flat on that scale, and the trellis needs the lowest bit while decoding.
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
TABLE_BITS = 60.0  # rough cost of one more table, for choosing between modes


def value_class(rows: Array, cols: Array, trellis: int) -> tuple[Array, Array]:
    """Table class (int16 [R, C], 0..CLASSES-1) and bits put aside (int8 [R, C]) of every entry.

    A trellis code is 2·value + parity, so its value is an octave narrower than the code.
    """
    classes = (rows[:, None] + cols[None, :]).astype(np.int32) - (SPREAD_STEPS if trellis else 0)
    aside = np.maximum(-((WIDEST - classes) // SPREAD_STEPS), 0)
    np.minimum(aside, 24, out=aside)
    classes = np.clip(classes - SPREAD_STEPS * aside, LOWEST, WIDEST) - LOWEST
    return classes.astype(np.int16), aside.astype(np.int8)


def symbols(values: Array, aside: Array) -> Array:
    """uint8 [R, C]: value without its middle bits, plus OFFSET; where that is no byte, an escape of the same parity."""
    short = ((values >> (aside + 1)) << 1) | (values & 1) if aside.any() else values
    fits = (short >= ESCAPES - OFFSET) & (short < OFFSET)
    return np.where(fits, short + OFFSET, short & 1).astype(np.uint8)


def estimate(codes: Array) -> Spread:
    """Spread classes that fit the second moments of `codes` [R, C]: rows and columns in turn, then rounded."""
    square = codes.astype(np.float32) ** 2
    floor = np.float32(2.0 ** (2 * LOWEST / SPREAD_STEPS))
    row, col = np.ones(len(square), np.float32), np.ones(square.shape[1], np.float32)
    for _ in range(3):
        row = np.maximum(square @ (1 / col) / np.float32(len(col)), floor)
        col = np.maximum((1 / row) @ square / np.float32(len(row)), floor)
    cols = _quarter_octaves(col / _typical(col))
    row = np.maximum(square @ _inverse_square(cols) / np.float32(len(col)), floor)
    return Spread(_quarter_octaves(row), cols)


def _typical(col: Array) -> Any:
    return np.exp(np.mean(np.log(col)))


def _inverse_square(classes: Array) -> Array:
    return np.exp2(-2.0 / SPREAD_STEPS * classes).astype(np.float32)


def _quarter_octaves(second_moment: Array) -> Array:
    return np.rint(0.5 * SPREAD_STEPS * np.log2(second_moment)).astype(np.int32)


@dataclass(frozen=True)
class Choice:
    """The cheapest mode of a plane and the spread that goes with it (zeros where a mode has no classes)."""

    mode: Mode
    spread: Spread


def choose(plane: Plane) -> Choice:
    """Row, column, both or no classes, by the entropy of the classes' histograms plus the indices' own cost."""
    if plane.trellis:  # the quantizer's own classes decide which entries are on the trellis
        assert plane.spread is not None
        return Choice("both", plane.spread)
    if plane.codes.size == 0:
        return Choice("one", Spread(np.zeros(plane.codes.shape[0], np.int32), np.zeros(plane.codes.shape[1], np.int32)))
    both = plane.spread or estimate(plane.codes)
    square = plane.codes.astype(np.float32) ** 2
    floor = np.float32(2.0 ** (2 * LOWEST / SPREAD_STEPS))
    no_rows, no_cols = np.zeros_like(both.rows), np.zeros_like(both.cols)
    overall = int(_quarter_octaves(np.maximum(square.mean(), floor)))
    candidates = [
        Choice("one", Spread(no_rows + overall, no_cols)),
        Choice("rows", Spread(_quarter_octaves(np.maximum(square.mean(1), floor)), no_cols)),
        Choice("cols", Spread(no_rows, _quarter_octaves(np.maximum(square.mean(0), floor)))),
        Choice("both", both),
    ]
    return min(candidates, key=lambda c: _cost(plane.codes, c.spread))


def _cost(codes: Array, spread: Spread) -> float:
    classes, aside = value_class(spread.rows, spread.cols, trellis=0)
    counts = np.bincount((classes.astype(np.int32) << 8 | symbols(codes, aside)).ravel(), minlength=CLASSES * 256)
    per_class = counts.reshape(CLASSES, 256)
    tables = TABLE_BITS * int(per_class.any(1).sum())
    return entropy_bits(per_class) + tables + index_bits(spread.rows) + index_bits(spread.cols) + float(aside.sum())


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
