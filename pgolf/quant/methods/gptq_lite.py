"""`gptq-lite`: the row-clip percentile with the least squared error, searched per tensor (PR #414). No Hessian."""

from __future__ import annotations

import torch
from torch import Tensor

from pgolf.packer.plane import Plane
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.methods.rows import round_rows, row_quantile, sorted_magnitudes
from pgolf.quant.settings import Settings

PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)


def quantize(weight: Tensor, curvature: MatrixCurvature | None, settings: Settings) -> Plane:
    """Round weight [R, C] at every clip of PERCENTILES and keep the plane of least mean squared error."""
    del curvature
    magnitudes = sorted_magnitudes(weight)
    planes = [round_rows(weight, row_quantile(magnitudes, q) / settings.top, settings) for q in PERCENTILES]
    return min(planes, key=lambda plane: squared_error(weight, plane))


def squared_error(weight: Tensor, plane: Plane) -> float:
    """Sum of squared differences between weight [R, C] and what the plane decodes to."""
    difference = weight.double() - torch.from_numpy(plane.reconstruct()).to(weight.device)
    return float(difference.square().sum())
