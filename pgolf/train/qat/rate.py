"""A differentiable estimate of the bits that the packer will spend on weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.train.qat.lattice import Lattice

LOGISTIC = math.sqrt(3) / math.pi  # scale of a logistic density over its standard deviation


def coded_bits(weight: Tensor, lattice: Lattice) -> Tensor:
    """Bits of all codes of float32 weight [n, R, C], a scalar with a gradient; needs the lattice's spread.

    The model is the packer's: the spread of a code comes from its row's and its column's class, and a code costs the
    logarithm of the probability of its cell. The density is logistic, between the coder's Laplace and Gauss, because its
    cells keep a usable logarithm however far out a weight lies. Spreads are constants: their derivative vanishes anyway,
    for they are (nearly) the likeliest for these weights. A row grid's step follows the row's standard deviation, so
    shrinking all of a row saves nothing, and the estimate knows it; `auto`'s steps follow the curvature, and there
    smaller weights are cheaper.
    """
    codes = lattice.codes(weight)
    if lattice.cols is None:
        std = weight.std(dim=-1, correction=0, keepdim=True)
        codes = codes * std.detach() / std.clamp_min(torch.finfo(std.dtype).tiny)
    scale = LOGISTIC * lattice.sigma()
    return -cell_log_probability(codes / scale, 1 / scale).sum() / math.log(2)


def cell_log_probability(x: Tensor, width: Tensor) -> Tensor:
    """log(S(x + width/2) − S(x − width/2)) for the logistic function S, without cancellation."""
    above, below = x + width / 2, x - width / 2
    return F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(-width))
