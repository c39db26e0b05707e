"""`sdclip` and `hessian-sdclip`: row clips from the row's standard deviation, no search (PR #1394, PR #1412).

Once codes are entropy coded only the step matters, not the integer range: int5 at k = 6 is int6 at k = 12.85.
So the default k grows with the grid and keeps the step where the contest's int6 has it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pgolf.packer.plane import Plane
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.methods.rows import round_rows
from pgolf.quant.settings import Settings

STEP_IN_STD = 12.85 / 31  # the contest's int6 matrices
NEARLY_CONSTANT = 1 / 8  # std / rms of a row below which k·std would clip the row's own mean away


def sdclip_steps(weight: Tensor, settings: Settings) -> Tensor:
    """float64 [..., R] of weight [..., R, C]: k·std(row)/R; rows that are nearly constant get max|w|/R, which represents them.

    The deviation is that of two sums, of values and of squares (torch's own takes ten times longer): their difference
    loses digits only where the row is nearly constant, and there it is not used.
    """
    rms = torch.linalg.vector_norm(weight, dim=-1, dtype=torch.float64) / math.sqrt(weight.shape[-1])
    std = (rms.square() - weight.mean(dim=-1, dtype=torch.float64).square()).clamp_min(0).sqrt()
    k = STEP_IN_STD * settings.top if settings.k is None else settings.k
    absmax = weight.abs().amax(dim=-1).double()
    return torch.where(std < NEARLY_CONSTANT * rms, absmax, k * std) / settings.top


def hessian_sdclip_steps(weight: Tensor, curvature: MatrixCurvature | None, settings: Settings) -> Tensor:
    """float64 [..., R]: sdclip's step times 1 + λ(r − 1), r_i = mean_j(|w_ij|·h_j / mean h) normalised to mean 1."""
    steps = sdclip_steps(weight, settings)
    w = weight.double().abs()
    if curvature is not None:
        w = w * curvature.inputs.diagonal().double().to(w.device)
    importance = w.mean(dim=-1)
    mean = importance.mean(dim=-1, keepdim=True)
    relative = torch.where(mean > 0, importance / mean, 1.0)
    return steps * (1 + settings.lam * (relative - 1))


def quantize(weight: Tensor, curvature: MatrixCurvature | None, settings: Settings) -> Plane:
    """Round weight [R, C] with scale_i = k·std(row i) / R (PR #1394)."""
    del curvature
    return round_rows(weight, sdclip_steps(weight, settings), settings)


def quantize_hessian(weight: Tensor, curvature: MatrixCurvature | None, settings: Settings) -> Plane:
    """Round weight [R, C] with sdclip's scale, wider for rows that lean on strong inputs (PR #1412)."""
    return round_rows(weight, hessian_sdclip_steps(weight, curvature, settings), settings)
