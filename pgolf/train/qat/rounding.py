"""What QAT puts in the place of a weight: three stand-ins for what packing will do to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pgolf.quant.methods.rows import round_clipped
from pgolf.train.qat.lattice import Lattice

HARDNESS = (1.0, 8.0)  # soft rounding's α when QAT starts and when training ends; 0 is the identity, infinity a step


@dataclass(frozen=True)
class Moment:
    """share: of the QAT phase that is over, 0..1. generator: for this step's noise, on the weights' device."""

    share: float
    generator: torch.Generator


SeenAndSlope = tuple[
    Tensor, Tensor | None
]  # what the model sees [n, R, C]; factor of the gradient on its way back, None: 1


def straight_through(weight: Tensor, lattice: Lattice, moment: Moment) -> SeenAndSlope:
    """The nearest lattice points; gradients as if nothing had been rounded (arXiv 1308.3432).

    Those of clipped codes too: a weight beyond the clip may come back.
    """
    del moment
    return lattice.weights(round_clipped(lattice.codes(weight), lattice.top)), None


def soft(weight: Tensor, lattice: Lattice, moment: Moment) -> SeenAndSlope:
    """Soft rounding with its own derivative, from nearly linear to nearly hard (Agustsson & Theis, arXiv 2006.09952)."""
    codes = lattice.codes(weight)
    hardness = HARDNESS[0] + (HARDNESS[1] - HARDNESS[0]) * moment.share
    cell = codes.floor()
    curve = torch.tanh(hardness * (codes - cell - 0.5))
    reach = 2 * math.tanh(hardness / 2)
    rounded = (cell + 0.5 + curve / reach).clamp(-lattice.top, lattice.top)
    return lattice.weights(rounded), hardness * (1 - curve.square()) / reach


def noise(weight: Tensor, lattice: Lattice, moment: Moment) -> SeenAndSlope:
    """Noise like the quantizer's errors, uniform where they arise and spread as its feedback spreads them; clips too.

    Uniform over a lattice cell, but never wider than the codes themselves: rows that the packer will round to zero lose
    all they have, not more. Needs the lattice's spread.
    """
    uniform = torch.rand(weight.shape, generator=moment.generator, device=weight.device) - 0.5
    width = torch.clamp(math.sqrt(12) * lattice.sigma(), max=1.0)
    codes = lattice.codes(weight)
    clipped = codes.clamp(-lattice.top, lattice.top) - codes
    return weight + lattice.spilled(lattice.weights(clipped + uniform * width)), None


ROUNDINGS: dict[str, Callable[[Tensor, Lattice, Moment], SeenAndSlope]] = {
    "ste": straight_through,
    "soft": soft,
    "noise": noise,
}
