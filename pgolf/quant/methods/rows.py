"""Uniform grids with one scale a row: what all classic methods share.

* Scales are rounded to what the artifact can hold first; codes are then computed against the decoded float32 scale.
* A row of zeros takes the median scale of the others, so that its scale index costs the coder nothing.
* Steps are computed in float64: the variance of float32 weights may overflow float32.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pgolf.packer.plane import HALF, Plane, Scale, mantissa_integers
from pgolf.quant.settings import Settings


def row_scale(steps: Tensor, settings: Settings) -> Scale:
    """The scales nearest to `steps` [R] times the searched knob; zeros become the median of the rest."""
    positive = steps[steps > 0]
    usual = positive.median() if positive.numel() else torch.ones((), dtype=steps.dtype, device=steps.device)
    wanted = torch.where(steps > 0, steps, usual) * settings.step
    return Scale.nearest(wanted.double().cpu().numpy(), settings.scale_per_octave)


def decoded(scale: Scale, like: Tensor) -> Tensor:
    """The float32 values of `scale` on the device of `like`."""
    return torch.from_numpy(scale.values()).to(like.device)


def decoded_on_device(steps: Tensor, settings: Settings) -> Tensor:
    """float32 [n, R]: `decoded(row_scale(steps, settings), steps)` of the steps [n, R] of n matrices, by tensor operations
    alone: the host never waits.

    The same bits but where two machines' logarithms differ at the very middle between two scales.
    """
    wanted = torch.where(steps > 0, steps, _usual(steps)).double() * settings.step
    wanted = wanted.clamp_min(2.0**-126)
    per_octave = settings.scale_per_octave
    if per_octave == HALF:
        return wanted.clamp(2.0**-24, 65504.0).half().float()
    index = (wanted.log2() * per_octave).round().int().clamp_max(127 * per_octave)
    octave = torch.div(index, per_octave, rounding_mode="floor")
    mantissas = [float(m) * 2.0**-23 for m in mantissa_integers(per_octave)]
    fraction = _constants(tuple(mantissas), steps.device)[(index - octave * per_octave).long()]
    return fraction * (octave + 127 << 23).view(torch.float32)  # times a power of two, exact


def _usual(steps: Tensor) -> Tensor:
    """[n, 1]: the median of each row's positive steps, 1 where there are none; how many there are stays on the device."""
    ordered = torch.where(steps > 0, steps, math.inf).sort(dim=-1).values
    count = (steps > 0).sum(dim=-1, keepdim=True)
    middle = ordered.gather(-1, ((count - 1) // 2).clamp_min(0))
    return torch.where(count > 0, middle, 1.0)


@lru_cache
def _constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float32, moved to the device once."""
    return torch.tensor(values, dtype=torch.float32).to(device)


def round_clipped(ratio: Tensor, top: float) -> Tensor:
    """`ratio` rounded to the nearest integer (ties to even) within ±top, still floating point."""
    return ratio.round().clamp_(-top, top)


def round_rows(weight: Tensor, steps: Tensor, settings: Settings) -> Plane:
    """Round weight [R, C] to the nearest multiples of `steps` [R], clipped to the integer grid of `settings`."""
    scale = row_scale(steps, settings)
    codes = round_clipped(weight / decoded(scale, weight)[:, None], settings.top)
    return Plane(integers(codes), row_scale=scale)


def integers(codes: Tensor) -> np.ndarray:
    """Integral floats as the int32 array that a Plane holds."""
    return codes.to(torch.int32).cpu().numpy()


def sorted_magnitudes(weight: Tensor) -> Tensor:
    """|weight| [..., C] in ascending order along each row; `torch.quantile` refuses more than 16M elements."""
    return weight.abs().sort(dim=-1).values


def row_quantile(magnitudes: Tensor, q: float) -> Tensor:
    """float64 [...]: the q-quantile of each ascending row [..., C], linear between neighbours."""
    at = q * (magnitudes.shape[-1] - 1)
    low = int(at)
    high = min(low + 1, magnitudes.shape[-1] - 1)
    return torch.lerp(magnitudes[..., low].double(), magnitudes[..., high].double(), at - low)
