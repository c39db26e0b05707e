"""Methods of papers without code that runs here, as we read them, so that pgolf packs by them: EntQuant, CERWU, WaterSIC.

Each keeps what its paper is about and gets all else from pgolf: the coder, whose tables adapt to rows and columns, and, where it
knows the text, one unit for all matrices (the mean of what the rows' errors cost). Papers code with less and allot bits among
layers by less, so these rows flatter them, if anything. `settings.step` sets the rate of each.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.packer.plane import Plane, Scale
from pgolf.quant import MatrixCurvature, Method, Settings, register
from pgolf.quant.curvature.factor import ascending
from pgolf.quant.methods import auto

FINEST = 64  # steps an octave of a grid that a whole matrix shares
PRICE = 0.1  # of a mean code of 1, in shares of a matrix's energy, at settings.step = 1
SCALES = np.exp2(np.arange(-32, 33) / 8)  # around the first guess
PASSES = 2  # over a matrix, each with the rates of the last one's codes


def watersic(weight: Tensor, curvature: MatrixCurvature | None, settings: Settings) -> Plane:
    """WaterSIC: scalar rounding with a step for each column, the inverse of its entry in the Cholesky factor of E[x xᵀ], errors
    fed to later columns, levels of least squared error, ideal entropy coding.

    This is `auto` without trellis, without prices of rows, and with levels that are not unbiased; its rounding counts bits too.
    """
    known = None if curvature is None else by_inputs(curvature)
    return auto.quantize(weight, known, replace(settings, trellis=0, unbias=0.0, two_sided=False))


def by_inputs(curvature: MatrixCurvature) -> MatrixCurvature:
    """The plain E[x xᵀ] of inputs, in the unit of the loss: the mean price of a row stands for all rows."""
    H, G = curvature.inputs, curvature.G
    unit = float(curvature.H.diagonal().sum() / H.diagonal().sum().clamp_min(1e-30))
    if G is not None:
        unit *= float((G.diagonal() if G.dim() == 2 else G).mean())
    return MatrixCurvature(H * unit)


def cerwu(weight: Tensor, curvature: MatrixCurvature | None, settings: Settings) -> Plane:
    """CERWU: one grid for a matrix; each code is the one of least squared error / U_jj² + λ·bits, and what it is off is fed to
    later columns (Optimal Brain Surgeon). Bits are those of the matrix's own codes so far; λ is the slope at the grid's step.
    """
    H = torch.eye(weight.shape[1]) if curvature is None else by_inputs(curvature).H
    order, U, mean = ascending(H, settings.damp_inputs)
    U = U.float()
    level = auto.UNIT * settings.step  # in √nats, as for `auto`
    step = level * math.exp(float(U.diagonal().double().log().mean())) / math.sqrt(mean)
    scale = Scale.nearest(np.full(len(weight), step), FINEST)
    codes = _rate_fed(weight.float()[:, order].T / float(scale.values()[0]), U, level**2 / mean / step**2)
    back = np.empty_like(codes)
    back[:, order.numpy()] = codes
    return Plane(back, scale)


def _rate_fed(target: Tensor, U: Tensor, price: float) -> NDArray[np.int32]:
    """int32 [R, C]: codes of a target [C, R] in steps. price: level² over step², so that U_jj² of a column over it is what its
    squared error is divided by."""
    lam = 2 * math.log(2) / 12
    codes = target.round()
    for _ in range(PASSES):
        bits, T = _bits(codes), target.clone()
        codes = torch.empty_like(target)
        for j, (row, factors) in enumerate(zip(T, U, strict=True)):
            worth = lam * float(factors[j]) ** 2 * price
            nearest = row.round()
            toward = nearest - nearest.sign()
            tried = torch.stack([nearest, toward, torch.zeros_like(row)])
            cost = (row - tried).square() + worth * bits[(tried.abs().long()).clamp_max(len(bits) - 1)]
            codes[j] = tried.gather(0, cost.argmin(dim=0, keepdim=True))[0]
            T[j + 1 :] -= torch.outer(factors[j + 1 :] / factors[j], row - codes[j])
    return codes.T.contiguous().numpy().astype(np.int32)


def _bits(codes: Tensor) -> Tensor:
    """[K]: bits of a code by its magnitude, sign included, from how often all of them come."""
    counts = torch.bincount(codes.abs().long().flatten()).double() + 0.5
    each = counts / 2
    each[0] = counts[0]
    return -(each / counts.sum()).log2().float()


def entquant(weight: Tensor, curvature: MatrixCurvature | None, settings: Settings) -> Plane:
    """EntQuant on integers: no text; each row's scale is the one of least squared error, in shares of the matrix's energy, plus
    a price times the mean magnitude of the codes, which stands for their entropy.
    """
    del curvature
    W = weight.double().numpy()
    energy, price = float(np.square(W).mean()) or 1.0, PRICE * settings.step**3
    spread = np.sqrt(np.square(W).mean(axis=1)) + 1e-30
    guess = np.cbrt(price * 6 * energy * spread)  # of the step that balances both: D ≈ step²/12, |code| ≈ spread/step
    best, chosen = np.full(len(W), np.inf), guess
    for factor in SCALES:
        steps = guess * factor
        codes = np.rint(W / steps[:, None])
        lost = np.square(W - codes * steps[:, None]).mean(axis=1) / energy + price * np.abs(codes).mean(axis=1)
        best, chosen = np.minimum(best, lost), np.where(lost < best, steps, chosen)
    scale = Scale.nearest(chosen, settings.scale_per_octave)
    return Plane(np.rint(weight.float().numpy() / scale.values()[:, None]).astype(np.int32), scale)


METHODS = (
    Method("entquant", entquant, False, "scales priced by the size of the codes, no text"),
    Method("cerwu", cerwu, True, "bits counted inside the feedback, one grid a matrix", reads=("damp_inputs",)),
    Method("watersic", watersic, True, "steps by the inputs' factor, feedback, entropy coding", reads=("damp_inputs",)),
)
# Of rows: name, method, steps between 4 and 2 bits a weight, fewer for a model that cares less for each.
ROWS = (
    ("EntQuant", "entquant", (0.125, 0.25, 0.5)),
    ("CERWU", "cerwu", (0.25, 0.5, 1.0, 2.0)),
    ("WaterSIC", "watersic", (0.25, 0.5, 1.0, 2.0)),
)


def known() -> None:
    """Make the methods known to pgolf in this process."""
    for method in METHODS:
        register(method)
