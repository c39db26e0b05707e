"""`quick`: water-filled steps from the diagonals of the curvature, every weight rounded on its own.

Nothing is factored, fed back or compiled, so this is the fastest way to an artifact that fits
(packing under a deadline starts here). It costs several times the loss of `auto` at equal bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.packer.plane import SPREAD_STEPS, Plane, Scale, Spread
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.methods.auto import LARGEST_CODE, RELATIVE_UNIT, UNIT, informative
from pgolf.quant.methods.side import gaussian_bits
from pgolf.quant.settings import Settings

LEAST_SHARE = 1e-3  # of the mean: an input or output that hardly matters still gets a finite step


@dataclass(frozen=True)
class Steps:
    """Steps at settings.step = 1: rows float64 [R] times cols float64 [C]."""

    rows: NDArray[np.float64]
    cols: NDArray[np.float64]


def quantize(weight: Tensor, curvature: MatrixCurvature | None, settings: Settings) -> Plane:
    """Round weight [R, C] with the steps c / √(g_i h_j), h and g the diagonals of H and G."""
    return finish(weight, prepare(weight, curvature, settings), settings)


def prepare(weight: Tensor, curvature: MatrixCurvature | None, settings: Settings) -> Steps:
    """The steps of weight [R, C]; without curvature one step, relative to the rms of the matrix."""
    rows, cols = weight.shape
    if curvature is None or not informative(curvature):
        rms = float(weight.double().square().mean().sqrt()) or 1.0
        return Steps(np.ones(rows), np.full(cols, RELATIVE_UNIT * rms))
    G = curvature.G
    g = torch.ones(rows, dtype=torch.float32) if G is None else G.diagonal() if G.dim() == 2 else G
    steps_of_rows = _inverse_root(g, settings.damp_outputs)
    middle = math.exp(np.log(steps_of_rows).mean())
    steps_of_cols = UNIT * middle * _inverse_root(curvature.H.diagonal(), settings.damp_inputs)
    return Steps(steps_of_rows / middle, steps_of_cols)


def _inverse_root(diagonal: Tensor, damp: float) -> NDArray[np.float64]:
    energy = diagonal.double().clamp(min=0).cpu().numpy()
    damped: NDArray[np.float64] = 1 / np.sqrt(energy + max(damp, LEAST_SHARE) * energy.mean())
    return damped


def finish(weight: Tensor, prepared: Steps, settings: Settings) -> Plane:
    """Round weight [R, C] to the nearest multiples of the decoded steps at settings.step."""
    W, rows, cols = _raised(weight, prepared, settings)
    row_scale = Scale.nearest(rows, settings.scale_per_octave)
    col_scale = Scale.nearest(cols, settings.scale_per_octave)
    codes = np.rint(W / row_scale.values()[:, None] / col_scale.values()).astype(np.int32)
    return Plane(codes, row_scale=row_scale, col_scale=col_scale)


def _raised(
    weight: Tensor, prepared: Steps, settings: Settings
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """The weights and the steps of rows and columns, raised until codes stay within LARGEST_CODE."""
    W: NDArray[np.float32] = weight.float().cpu().numpy()
    cols = prepared.cols * settings.step
    largest = (np.abs(W) / cols.astype(np.float32)).max(axis=1).astype(np.float64)
    return W, np.maximum(prepared.rows, largest / LARGEST_CODE), cols


def spread(weight: Tensor, prepared: Steps, settings: Settings) -> Spread:
    """Spread classes of the unrounded codes, by one pass of means over rows and one over columns."""
    W, rows, cols = _raised(weight, prepared, settings)
    energy = np.square(W / cols.astype(np.float32))
    across = energy.mean(axis=0) + np.float32(2.0**-32)
    across /= np.exp(np.log(across).mean())
    down = (energy @ (1 / across)) / np.float32(len(across)) / np.square(rows)
    classes = (np.rint(SPREAD_STEPS / 2 * np.log2(np.maximum(v, 2.0**-32))).astype(np.int32) for v in (down, across))
    return Spread(*classes)


def expected_bits(weight: Tensor, prepared: Steps, settings: Settings) -> float:
    """Bits that the codes of weight [R, C] will take, from their spreads alone."""
    classes = spread(weight, prepared, settings)
    (rows, tall), (cols, wide) = (np.unique(index, return_counts=True) for index in (classes.rows, classes.cols))
    width = (rows[:, None] + cols[None, :]).ravel()  # distinct classes only: every entry has its row's and column's
    return float((np.outer(tall, wide).ravel() * gaussian_bits(np.exp2(width / SPREAD_STEPS))).sum())
