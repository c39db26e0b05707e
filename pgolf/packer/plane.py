"""The integers of one quantized matrix, and the only rule by which pgolf turns them back into weights: `Plane.reconstruct`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

HALF = 0  # Scale.per_octave of scales that are kept as IEEE half-precision bits


@cache
def mantissa_integers(per_octave: int) -> tuple[int, ...]:
    """round(2^23 · 2^(k/per_octave)) for k = 0..per_octave-1, a power of two up to 64.

    The same on every machine: none of these powers lies within 0.001 of where rounding changes (a test looks), and no
    machine's pow errs by a millionth of that.
    """
    return tuple(round(2.0 ** (23 + k / per_octave)) for k in range(per_octave))


@dataclass(frozen=True)
class Scale:
    """Positive scale factors, one a row or column, kept as integers so that every machine gets the same float32.

    index: int32 [n]; value = 2^(index / per_octave), or with per_octave == HALF the bits of an IEEE half.
    per_octave: steps in a factor of two; a power of two up to 64, or HALF.
    """

    index: NDArray[np.int32]
    per_octave: int

    def values(self) -> NDArray[np.float32]:
        """float32 [n], from integer arithmetic and exact scaling by powers of two: the same on every machine."""
        if self.per_octave == HALF:
            return self.index.astype(np.uint16).view(np.float16).astype(np.float32)
        mantissas = np.array(mantissa_integers(self.per_octave), np.float32)  # 24 bits: exact
        return np.ldexp(mantissas[self.index % self.per_octave], self.index // self.per_octave - 23)

    @staticmethod
    def nearest(values: NDArray[np.floating], per_octave: int) -> Scale:
        """The scales closest to `values` [n] (> 0; zeros and denormals become the smallest normal float32)."""
        wanted = np.maximum(np.asarray(values, np.float64), 2.0**-126)
        if per_octave == HALF:
            half = np.clip(wanted, 2.0**-24, 65504.0).astype(np.float16)
            return Scale(half.view(np.uint16).astype(np.int32), HALF)
        index = np.rint(np.log2(wanted) * per_octave).astype(np.int32)
        return Scale(np.minimum(index, 127 * per_octave), per_octave)


@dataclass(frozen=True)
class Spread:
    """How wide the codes of each row and column are: what the coder's probability tables are chosen by.

    rows: int32 [R], cols: int32 [C]; the codes of entry (i, j) have a standard deviation of about
    2^((rows[i] + cols[j]) / SPREAD_STEPS) lattice steps.
    """

    rows: NDArray[np.int32]
    cols: NDArray[np.int32]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return len(self.rows), len(self.cols)


SPREAD_STEPS = 4  # spread classes in an octave


@dataclass(frozen=True)
class Plane:
    """One quantized matrix: W[i, j] = (codes[i, j] · row_scale[i]) · col_scale[j], in float32 and in this order.

    codes: int32 [R, C]; of a loaded artifact int16 where no code needed more than a symbol.
    row_scale: R values or None (= 1); col_scale: C values or None (= 1).
    trellis: states of the trellis code, 0 for scalar codes. The codes lie on one lattice of integers either way; a
        trellis restricts which may follow which. In a trellis plane, entry (i, j) with rows[i] + cols[j] < trellis_from
        of `spread` leaves the trellis state alone and must have an even code.
    spread: from the quantizer where it knows it; the coder estimates it otherwise. Required with a trellis.
    """

    codes: NDArray[np.signedinteger]
    row_scale: Scale | None = None
    col_scale: Scale | None = None
    trellis: int = 0
    trellis_from: int = 0
    spread: Spread | None = None

    def part(self, rows: slice) -> Plane:
        """Some of its rows. The codes of a trellis plane follow one another down all of them: a part decodes to its
        weights, but is coded again only together with the others."""
        spread = self.spread and Spread(self.spread.rows[rows], self.spread.cols)
        row_scale = self.row_scale and Scale(self.row_scale.index[rows], self.row_scale.per_octave)
        return Plane(self.codes[rows], row_scale, self.col_scale, self.trellis, self.trellis_from, spread)

    @staticmethod
    def joined(parts: Sequence[Plane]) -> Plane:
        """The plane that these are the parts of, in order."""
        first = parts[0]
        if len(parts) == 1:
            return first
        scales = [plane.row_scale.index for plane in parts if plane.row_scale]
        spreads = [plane.spread.rows for plane in parts if plane.spread]
        return replace(
            first,
            codes=np.concatenate([plane.codes for plane in parts]),
            row_scale=first.row_scale and Scale(np.concatenate(scales), first.row_scale.per_octave),
            spread=first.spread and Spread(np.concatenate(spreads), first.spread.cols),
        )

    def reconstruct(self) -> NDArray[np.float32]:
        """float32 [R, C] by the reconstruction rule."""
        out = self.codes.astype(np.float32)
        if self.row_scale:
            out *= self.row_scale.values()[:, None]
        if self.col_scale:
            out *= self.col_scale.values()
        return out
