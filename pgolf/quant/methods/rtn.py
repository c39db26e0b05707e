"""`rtn`: round to nearest, the scale of a row from its largest weight or a high percentile of |w|."""

from __future__ import annotations

from torch import Tensor

from pgolf.packer.plane import Plane
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.methods.rows import round_rows, row_quantile, sorted_magnitudes
from pgolf.quant.settings import Settings


def rtn_steps(weight: Tensor, settings: Settings) -> Tensor:
    """float64 [..., R]: quantile_j(|w_ij|, settings.percentile) / R."""
    return row_quantile(sorted_magnitudes(weight), settings.percentile) / settings.top


def quantize(weight: Tensor, curvature: MatrixCurvature | None, settings: Settings) -> Plane:
    """Round weight [R, C] with scale_i = quantile_j(|w_ij|, settings.percentile) / R; percentile 1.0 is absmax."""
    del curvature
    return round_rows(weight, rtn_steps(weight, settings), settings)
