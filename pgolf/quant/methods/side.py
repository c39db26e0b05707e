"""How much to tell of a matrix beside its codes: scales and spread classes as coarse as its rows and columns are short.

A step that is δ octaves off costs its weights (4^δ − 1)/(2 ln 2) − δ bits at the price of loss, a class that is off
ln 2·δ²; an index costs its entropy once for all weights of its row. Rows of 1,024 weights deserve eight steps an octave,
rows of eight no scale of their own.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pgolf.common import extras
from pgolf.packer.plane import HALF, SPREAD_STEPS, Scale

FINEST = 64  # steps an octave of a scale that all rows share: it costs nothing there

Indices = NDArray[np.signedinteger]


def gaussian_bits(sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy in bits of a Gaussian of standard deviation `sigma` rounded to integers."""
    extras.need("scipy")
    from scipy.special import ndtr

    values = np.arange(-12, 13)
    narrow = np.minimum(sigma, 2.0)[:, None]  # wider ones follow the formula
    upper = ndtr((values + 0.5) / narrow)
    p = np.maximum(upper - ndtr((values - 0.5) / narrow), 1e-300)
    bits: NDArray[np.float64] = -(p * np.log2(p)).sum(axis=1) + np.log2(np.maximum(sigma, 2.0) / 2.0)
    return bits


def index_bits(index: Indices) -> float:
    """About the bits of an index vector [n]: a base and Gaussian residuals, none where all are alike."""
    residual = index - int(np.median(index)) if index.size else index
    if not residual.any():
        return 0.0
    return len(index) * float(gaussian_bits(np.array([math.sqrt(np.mean(np.square(residual, dtype=np.float64)))]))[0])


def fitting_scale(wanted: NDArray[np.float64], weights: int, finest: int) -> Scale:
    """Scales for `wanted` [n] positive factors that `weights` weights each share, at most `finest` steps an octave."""
    full = Scale.nearest(wanted, finest)
    if finest == HALF or len(wanted) < 2:
        return full
    levels = [finest >> k for k in range(finest.bit_length())]
    middle = np.full(len(wanted), math.exp(np.log(wanted).mean()))
    candidates = [full, *(Scale.nearest(wanted, level) for level in levels[1:]), Scale.nearest(middle, FINEST)]
    return min(
        candidates, key=lambda scale: index_bits(scale.index) + wanted.size * weights * _step_loss(scale, wanted)
    )


def _step_loss(scale: Scale, wanted: NDArray[np.float64]) -> float:
    """Bits a weight that inexact steps cost at equal loss."""
    off = _octaves_off(scale, wanted)
    return float(((np.exp2(2 * off) - 1) / (2 * math.log(2)) - off).mean())


def drift(scale: Scale, wanted: NDArray[np.float64]) -> float:
    """The geometric mean of scale / wanted."""
    return float(np.exp2(_octaves_off(scale, wanted).mean())) if len(wanted) else 1.0


def _octaves_off(scale: Scale, wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    least = 2.0**-126
    return np.log2(np.maximum(scale.values().astype(np.float64), least) / np.maximum(wanted, least))


def fitting_classes(classes: Indices, scale: Scale, weights: int) -> NDArray[np.int32]:
    """Spread classes [n] near `classes` that are cheap to tell beside `scale`, for rows of `weights` weights."""
    octaves = _octaves(scale)
    rms = classes + octaves
    plain, follow = _mean(classes), _mean(rms)  # coarse ones lie about the mean, whatever the step of the matrix
    candidates = [classes, np.full_like(classes, plain), follow - octaves]
    for step in (2, 4):
        candidates.append(plain + step * np.rint((classes - plain) / step))
        candidates.append(follow + step * np.rint((rms - follow) / step) - octaves)

    def cost(found: Indices) -> float:
        off = (found - classes) / SPREAD_STEPS
        return class_bits(found, scale) + classes.size * weights * math.log(2) * float(np.square(off).mean())

    made = [candidate.astype(np.int32) for candidate in candidates]
    return min(made, key=cost) if len(classes) else made[0]


def class_bits(classes: Indices, scale: Scale) -> float:
    """About the bits of spread classes, told as they are or as what they leave to say after the scale."""
    return min(index_bits(classes), index_bits(classes + _octaves(scale)))


def _octaves(scale: Scale) -> Indices:
    """The scale in spread steps, as a class that follows it is told; zeros where none can follow."""
    if scale.per_octave == HALF:
        return np.zeros(len(scale.index), np.int64)
    return scale.index.astype(np.int64) * SPREAD_STEPS // scale.per_octave


def _mean(values: Indices) -> int:
    return round(float(values.mean())) if values.size else 0
