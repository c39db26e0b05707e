"""What rounding does to a tensor: its relative error, the rise of the loss that is foreseen, and whether its dtype holds it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pgolf.common import scratch
from pgolf.packer.format.artifact import Entry
from pgolf.packer.plane import Plane
from pgolf.quant.curvature.loss import loss_rise
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.slices import matrix_shape

NEAR = 0.5  # of the largest number of a dtype: rounding moves no value further at any step worth having
Known = Sequence[MatrixCurvature | None] | None


def of_entry(entry: Entry, tensor: Tensor | None, known: Known) -> tuple[float | None, float | None]:
    """(‖W − Ŵ‖/‖W‖, predicted rise of the loss in nats per token), None where there is none or it is not known.

    tensor: the one that the entry stands for, None where it is another's name; known: the curvature of its slices.
    """
    cast = entry.planes is None and entry.stored is not None and known is not None
    shape = matrix_shape(entry.shape)
    if tensor is None or shape is None or not (entry.planes or cast) or not tensor.is_floating_point():
        return None, None
    original = tensor.reshape(shape)
    if entry.planes is None:
        assert known is not None
        exact = original.to(torch.float32)
        made = exact.to(getattr(torch, str(entry.stored))).float()
        return None, _rise_of(list(made - exact), known)
    errors = [error_of(plane, weight) for plane, weight in zip(entry.planes, original, strict=True)]
    norm = _energy(original.reshape(-1, shape[-1]))
    error = math.sqrt(sum(map(_energy, errors)) / norm) if norm else 0.0
    return error, None if known is None else _rise_of(errors, known)


def error_of(plane: Plane, weight: Tensor) -> Tensor:
    """float32 [R, C]: what a plane gives, less the weight."""
    out = torch.empty(plane.codes.shape, dtype=torch.float32)
    for rows in scratch.pieces(*plane.codes.shape):
        torch.sub(torch.from_numpy(plane.part(rows).reconstruct()), weight[rows].to(torch.float32), out=out[rows])
    return out


def _energy(matrix: Tensor) -> float:
    """The sum of all squares."""
    return sum(float(matrix[rows].float().double().square().sum()) for rows in scratch.pieces(*matrix.shape))


def _rise_of(errors: Sequence[Tensor], known: Sequence[MatrixCurvature | None]) -> float:
    """Predicted rise of the loss, over the slices whose curvature is known."""
    return sum(loss_rise(e, c) for e, c in zip(errors, known, strict=True) if c is not None)


def overflows(tensor: Tensor, planes: Sequence[Plane]) -> bool:
    """Whether what the codes of a tensor give is not finite in its dtype: float16 ends at 65,504, float8 at 448."""
    if tensor.dtype in {torch.float32, torch.float64} or not tensor.numel():
        return False
    if max(float(part.float().abs().max()) for part in _parts(tensor)) < NEAR * torch.finfo(tensor.dtype).max:
        return False
    with np.errstate(over="ignore"):
        made = [torch.from_numpy(plane.reconstruct()).to(tensor.dtype).float() for plane in planes]
    return not all(bool(torch.isfinite(matrix).all()) for matrix in made)


def _parts(tensor: Tensor) -> Sequence[Tensor]:
    flat = tensor.detach().reshape(-1)
    return [flat[part] for part in scratch.pieces(len(flat), 1)]
