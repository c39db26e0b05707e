"""`gptq`: full-Hessian GPTQ on SDClip's grid (arXiv 2210.17323; PR #634, PR #1060, PR #1394).

* Scales are fixed before the first column is rounded; only the codes know H.
* Columns are processed in act-order (diagonal of H, descending), but stored where they were: no permutation is kept.
* Without curvature H = I, and the result is sdclip's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pgolf.packer.plane import Plane
from pgolf.quant.curvature.factor import damped, inverse_upper
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.methods.rows import decoded, integers, round_clipped, row_scale
from pgolf.quant.methods.sdclip import quantize as quantize_sdclip
from pgolf.quant.methods.sdclip import sdclip_steps
from pgolf.quant.settings import Settings


def quantize(weight: Tensor, curvature: MatrixCurvature | None, settings: Settings) -> Plane:
    """Round weight [R, C] column by column, later columns absorbing the error that H [C, C] says they can."""
    if curvature is None:
        return quantize_sdclip(weight, curvature, settings)
    H, _ = damped(curvature.inputs.to(weight.device), settings.damp)
    order = column_order(H, settings.act_order)
    U = inverse_upper(H[order][:, order]).float()
    scale = row_scale(sdclip_steps(weight, settings), settings)
    codes = torch.empty_like(weight)
    codes[:, order] = feedback_codes(weight[:, order], U, decoded(scale, weight), settings)
    return Plane(integers(codes), row_scale=scale)


def column_order(H: Tensor, act_order: bool) -> Tensor:
    """int64 [C]: columns by descending diagonal (ties in place), or as they stand."""
    if not act_order:
        return torch.arange(len(H), device=H.device)
    return H.diagonal().argsort(descending=True, stable=True)


def feedback_codes(weight: Tensor, U: Tensor, steps: Tensor, settings: Settings) -> Tensor:
    """Integral float32 [R, C]: error feedback in blocks, errors pushed out of a block by one matrix product."""
    target, codes = weight.clone(), torch.empty_like(weight)
    for start in range(0, weight.shape[1], settings.block):
        end = min(start + settings.block, weight.shape[1])
        errors = round_block(target[:, start:end], codes[:, start:end], U[start:end, start:end], steps, settings.top)
        target[:, end:] -= errors @ U[start:end, end:]
    return codes


def round_block(target: Tensor, codes: Tensor, U: Tensor, steps: Tensor, top: int) -> Tensor:
    """Round one block in place into `codes` [R, B]; returns its errors [R, B], each divided by U_jj."""
    errors = torch.empty_like(target)
    for j in range(target.shape[1]):
        codes[:, j] = round_clipped(target[:, j] / steps, top)
        errors[:, j] = (target[:, j] - codes[:, j] * steps) / U[j, j]
        target[:, j:] -= errors[:, j, None] * U[j, j:]
    return errors
