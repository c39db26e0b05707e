"""A quantizer of another package: after `pip install .` here, `pgolf pack ckpt.pt --method awq:grid=12` uses it.

Columns of strong inputs get finer steps, by the power of their strength that hurts least (the idea of AWQ, arXiv 2306.00978).
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pgolf.quant import MatrixCurvature, Method, Plane, Range, Scale, Settings


@dataclass(frozen=True)
class AWQ:
    """grid: powers tried from 0 to 1. width: of a row's steps where settings.step is 1, in standard deviations."""

    grid: Annotated[int, Range(1, 100)] = 8
    width: Annotated[float, Range(0.01, 4)] = 0.3


def quantize(weight: Tensor, curvature: MatrixCurvature | None, settings: Settings) -> Plane:
    """The plane of weight [R, C] with the least squared error of its outputs, over a grid of powers."""
    W = weight.double().cpu().numpy()
    strength = np.ones(W.shape[1]) if curvature is None else curvature.H.diagonal().double().clamp(min=0).cpu().numpy()
    strength = strength + 1e-3 * strength.mean() + 1e-30
    rows = settings.step * settings.own.width * (W.std(axis=1) + 1e-12)
    planes = [at_power(p, W, rows, strength, settings) for p in np.linspace(0, 1, settings.own.grid)]
    return min(planes, key=lambda plane: float((np.square(W - plane.reconstruct()) @ strength).sum()))


def at_power(
    power: float, W: NDArray[np.float64], rows: NDArray[np.float64], strength: NDArray[np.float64], settings: Settings
) -> Plane:
    """Plain rounding with steps rows · strength^(-power/2); a geometric mean of 1 leaves the bytes about the same."""
    cols = np.exp(-power / 2 * (np.log(strength) - np.log(strength).mean()))
    row_scale, col_scale = (Scale.nearest(side, settings.scale_per_octave) for side in (rows, cols))
    codes = np.rint(W / row_scale.values()[:, None] / col_scale.values())
    return Plane(codes.astype(np.int32), row_scale, col_scale)


METHOD = Method("awq", quantize, True, "steps by the strength of the inputs, plain rounding", settings=AWQ)
