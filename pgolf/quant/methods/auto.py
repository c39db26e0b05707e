"""`auto`: water-filled steps, error feedback, rate-aware scalar or trellis-coded rounding. One number sets them all.

* Steps are Δ_ij = c·U_jj·V_ii with H⁻¹ = UᵀU and G⁻¹ = VᵀV: every weight of every matrix then costs the same c²/24
  nats per token, and the bits of tensors, rows and columns follow (reverse water-filling, docs/METHOD.md §2).
* Errors are fed to later columns through U and to later rows through V (arXiv 2505.22988); a G that is only a diagonal
  still sets the steps of the rows.
* Nothing is clipped: the codes of frequent embedding rows reach the thousands.
* The encoder's lattice is not the decoder's step: the best level of a low-rate code differs from where it was rounded.
  Their ratio is folded into the transmitted scales, so that scales may be coarse and the ratio exact.
* Least squared error is the wrong place for the levels. It pulls every matrix toward zero at once, which no Kronecker
  factor sees; halfway to unbiased levels won 0.07 bits a weight at 3.1 bits and 0.1 at 2.5 in measured KL.
* Columns go in ascending order of H's diagonal: what matters most comes last and absorbs what the others left.
* Without curvature H = G = I and c is relative to the rms of the matrix: an equal relative error for every tensor.
* Curvature on a GPU is factored there, which is the work that grows with the cube of the width, and matrices are rounded
  there by a kernel; everything else is on the CPU. That costs one copy of the matrix and its two factors a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.common import scratch
from pgolf.common.one_thread import one_thread_each
from pgolf.packer.plane import SPREAD_STEPS, Plane, Scale, Spread
from pgolf.quant.curvature.factor import ascending, inverse_upper
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.methods.side import class_bits, drift, fitting_classes, fitting_scale, gaussian_bits, index_bits
from pgolf.quant.rounding.feedback import RoundingRule, rounded_rows
from pgolf.quant.settings import LOG_SCALE, Settings

UNIT = 2.0**-12  # c at Settings.step = 1, in √(nats per token): about 3 bits a weight on a small language model
RELATIVE_UNIT = 0.5  # the same without curvature, in rms of the matrix
FROZEN_BELOW = -2  # spread class (σ = 0.7 lattice steps) under which an entry of a trellis plane is rounded on its own
LARGEST_CODE = 2.0**18  # steps are raised until weights stay within: only matrices far off their curvature's scale
GAP = {0: 0.2546, 4: 0.090, 8: 0.076, 16: 0.065, 32: 0.055, 64: 0.047, 128: 0.040, 256: 0.034}  # bits over the bound

CPU = torch.device("cpu")
LEAST_DAMP = 1e-6  # of the mean: rows without any gradient still get a finite step
LEAST_KEPT = 0.6  # of the weight: below, most codes are zero and no level makes up for that
# Level of least squared error over lattice point under rate-aware rounding of a Gaussian: (spread classes, levels)
LEVELS_SCALAR = ((-6, -4, -2, 0, 2, 4, 6), (0.83, 0.863, 0.939, 0.981, 0.995, 0.999, 1.0))
LEVELS_CODED = ((-2, 0, 2, 4, 6, 8, 12), (0.83, 0.871, 0.958, 0.989, 0.997, 0.999, 1.0))


@dataclass(frozen=True)
class Frame:
    """What rounding needs of the curvature, on the CPU: independent of the weights and of the searched step.

    order: int64 [C], the order of the columns. U: float32 [C, C], H⁻¹ = UᵀU in that order. g: float64 [R], what an
    error of the row costs after later rows absorbed their part. V: float32 [R, R], G⁻¹ = VᵀV, or None: G is diagonal.
    device: where the curvature was, and where rounding is to be.
    """

    order: Tensor
    U: Tensor
    g: NDArray[np.float64]
    V: Tensor | None = None
    device: torch.device = CPU


@dataclass(frozen=True)
class Prepared:
    """A matrix's frame and the c that settings.step = 1 stands for: all that is slow and does not depend on the step."""

    frame: Frame
    unit: float


def quantize(weight: Tensor, curvature: MatrixCurvature | None, settings: Settings) -> Plane:
    """Quantize weight [R, C]; settings.step scales c, settings.trellis picks the code (0 = scalar)."""
    return finish(weight, prepare(weight, curvature, settings), settings)


def prepare(weight: Tensor, curvature: MatrixCurvature | None, settings: Settings) -> Prepared:
    """Factor the curvature of weight [R, C] once for many steps."""
    if curvature is None or not informative(curvature):
        rms = math.sqrt(_energy(weight) / weight.numel()) or 1.0
        return Prepared(identity_frame(*weight.shape), RELATIVE_UNIT * rms)
    return Prepared(curvature_frame(curvature, weight.shape[0], settings), UNIT)


def finish(weight: Tensor, prepared: Prepared, settings: Settings) -> Plane:
    """Quantize weight [R, C] at settings.step."""
    return quantize_in_frame(weight, prepared.frame, prepared.unit * settings.step, settings)


def expected_bits(weight: Tensor, prepared: Prepared, settings: Settings) -> float:
    """Bits that the codes of weight [R, C] will take, from their spreads alone: nothing is rounded."""
    W = turned(weight, prepared.frame.order)
    rows, cols = water_filled(W, prepared.frame, prepared.unit * settings.step, settings.trellis)
    spread = spreads(W, rows, cols)
    classes, counts = class_counts(spread)
    sigma = np.exp2(classes / SPREAD_STEPS) / (2 if settings.trellis else 1)
    side = 0.0  # a coarser lattice has the same steps in the mean
    for steps, fine, weights in ((rows, spread.rows, len(cols)), (cols, spread.cols, len(rows))):
        scale = fitting_scale(steps, weights, settings.scale_per_octave)
        side += index_bits(scale.index) + class_bits(fitting_classes(fine, scale, weights), scale)
    return float((counts * gaussian_bits(sigma)).sum()) + side


def _energy(weight: Tensor) -> float:
    """The sum of all squares of weight [R, C]."""
    return sum(float(weight[rows].double().square().sum()) for rows in scratch.pieces(*weight.shape))


def class_counts(spread: Spread) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(the classes of a matrix's entries, ascending; how many entries each has), from how often rows and columns have theirs."""
    (rows, tall), (cols, wide) = (np.unique(index, return_counts=True) for index in (spread.rows, spread.cols))
    sums, counts = np.add.outer(rows, cols).ravel(), np.outer(tall, wide).ravel()
    found: dict[int, int] = {}
    for width, count in zip(sums.tolist(), counts.tolist(), strict=True):
        found[width] = found.get(width, 0) + count
    return np.array(sorted(found), np.int64), np.array([found[width] for width in sorted(found)], np.float64)


def turned(weight: Tensor, order: Tensor) -> Tensor:
    """float32 [C, R] on the CPU: the columns of weight [R, C], in this order, as rows."""
    rows, cols = weight.shape
    out = torch.empty(cols, rows, dtype=torch.float32)
    for some in scratch.pieces(rows, cols):
        out[:, some] = weight[some].cpu()[:, order].float().T
    return out


def foreseen_rise(weights: int) -> float:
    """Nats per token that rounding so many weights with curvature at Settings.step = 1 costs, while codes are wide."""
    return weights * UNIT * UNIT / 24


def informative(curvature: MatrixCurvature) -> bool:
    """Whether any input or output was ever other than zero: without, a rise of the loss cannot be told."""
    H, G = curvature.H, curvature.G
    outputs = torch.ones(1, dtype=torch.float32) if G is None else G.diagonal() if G.dim() == 2 else G
    return bool(H.diagonal().sum() > 0) and bool(outputs.sum() > 0)


def identity_frame(rows: int, cols: int) -> Frame:
    """The frame of H = G = I."""
    return Frame(torch.arange(cols), _eye(cols), np.ones(rows))


@lru_cache(4)
def _eye(size: int) -> Tensor:
    """The same for all matrices of a width: a model has as many as layers."""
    return torch.eye(size, dtype=torch.float32)


def curvature_frame(curvature: MatrixCurvature, rows: int, settings: Settings) -> Frame:
    """Damped and factored curvature; the unit that damping takes out of H goes into the row weights."""
    order, U, mean = ascending(curvature.H, settings.damp_inputs)
    order, U, device = order.cpu(), U.float().cpu(), curvature.H.device
    G = torch.ones(rows, dtype=torch.float32, device=device) if curvature.G is None else curvature.G
    damp = max(settings.damp_outputs, LEAST_DAMP)
    if G.dim() == 2 and settings.two_sided:
        G = G.to(torch.float64, copy=True).mul_(mean)
        G.diagonal().add_(damp * G.diagonal().mean())
        V = inverse_upper(G)
        return Frame(order, U, V.diagonal().pow(-2).cpu().numpy(), V.float().cpu(), device)
    g = (G.diagonal() if G.dim() == 2 else G).double() * mean
    return Frame(order, U, (g + damp * g.mean()).cpu().numpy(), device=device)


def distortion(states: int) -> float:
    """Mean squared error of the code at high rate, in squared lattice steps."""
    spacing = 2.0 if states else 1.0  # of the points that one parity leaves
    return spacing * spacing / 12 * math.exp2(2 * (GAP[states] - GAP[0]))


def quantize_in_frame(weight: Tensor, frame: Frame, c: float, settings: Settings) -> Plane:
    """Round weight [R, C] at water level c, in √(nats per token)."""
    W = turned(weight, frame.order)
    lattice = chosen_lattice(W, frame, c, settings)
    return _plane(_rounded_rows(W, frame, _rule(lattice, settings)), frame, lattice, settings)


def kind(weight: Tensor, prepared: Prepared, settings: Settings) -> Hashable | None:
    """Of matrices that `finish_together` rounds side by side: those whose curvature is on a device that has the kernel."""
    frame = prepared.frame
    if frame.device == CPU or not _has_kernel():
        return None
    return tuple(weight.shape), frame.V is None, frame.device, settings.trellis


def finish_together(
    weights: Sequence[Tensor], prepared: Sequence[Prepared], settings: Sequence[Settings]
) -> list[Plane]:
    """`finish` of several matrices of one `kind`."""
    from pgolf.quant.rounding import diagonals  # brings triton, where it is installed

    frames = [each.frame for each in prepared]

    def asked(weight: Tensor, own: Prepared, settings: Settings) -> tuple[Lattice, diagonals.Asked]:
        W = turned(weight, own.frame.order)
        lattice = chosen_lattice(W, own.frame, own.unit * settings.step, settings)
        return lattice, diagonals.Asked(W, own.frame.U, own.frame.V, _rule(lattice, settings))

    with one_thread_each() as pool:
        lattices, all_asked = zip(*pool.map(asked, weights, prepared, settings), strict=True)
        codes = diagonals.round_together(all_asked, frames[0].device)
        whole = ([(slice(None), each)] for each in codes)
        return list(pool.map(_plane, whole, frames, lattices, settings))


def _rule(lattice: Lattice, settings: Settings) -> RoundingRule:
    return RoundingRule(
        rows=lattice.rows.astype(np.float32),
        cols=lattice.cols.astype(np.float32),
        decoded_rows=lattice.row_scale.values(),
        decoded_cols=lattice.col_scale.values(),
        lam=rate_weights(lattice.ideal_rows, lattice.rows, settings.trellis),
        spread=lattice.spread,
        states=settings.trellis,
        trellis_from=FROZEN_BELOW if settings.trellis else 0,
    )


def _plane(
    rounded: Iterable[tuple[slice, NDArray[np.int32]]], frame: Frame, lattice: Lattice, settings: Settings
) -> Plane:
    """The plane of codes [C, n] that come for some rows after another."""
    shape = len(lattice.rows), len(lattice.cols)
    back, codes = frame.order.argsort().numpy(), np.empty(shape, np.int32)
    for rows, some in rounded:
        codes[rows] = some[back].T
    return Plane(
        codes,
        row_scale=lattice.row_scale,
        col_scale=Scale(lattice.col_scale.index[back], lattice.col_scale.per_octave),
        trellis=settings.trellis,
        trellis_from=FROZEN_BELOW if settings.trellis else 0,
        spread=Spread(lattice.spread.rows, lattice.spread.cols[back]),
    )


def _rounded_rows(W: Tensor, frame: Frame, rule: RoundingRule) -> Iterable[tuple[slice, NDArray[np.int32]]]:
    """As `rounded_rows`, where the frame says; without triton always on the CPU."""
    if frame.device != CPU and _has_kernel():
        from pgolf.quant.rounding import diagonals  # brings triton

        return [(slice(None), diagonals.round_on_device(W, frame.U, frame.V, rule, frame.device))]
    return rounded_rows(W, frame.U, frame.V, rule)


def _has_kernel() -> bool:
    from pgolf.quant.rounding import diagonals  # brings triton, where it is installed

    return diagonals.HAS_KERNEL


@dataclass(frozen=True)
class Lattice:
    """What a matrix is rounded to: steps of rows [R] and columns [C], the scales that are transmitted for them, and the
    spread of the codes, as it is told. ideal_rows: water-filled."""

    rows: NDArray[np.float64]
    cols: NDArray[np.float64]
    row_scale: Scale
    col_scale: Scale
    spread: Spread
    ideal_rows: NDArray[np.float64]


def chosen_lattice(W: Tensor, frame: Frame, c: float, settings: Settings) -> Lattice:
    """The lattice of W [C, R] at water level c, its side information as coarse as the size of the matrix asks for."""
    ideal_rows, ideal_cols = water_filled(W, frame, c, settings.trellis)
    spread = spreads(W, ideal_rows, ideal_cols)
    row_level, col_level = level_factors(spread, settings)
    free = settings.scale_per_octave == LOG_SCALE  # a resolution that somebody asks for is kept
    fit = fitting_scale if free else lambda wanted, _, finest: Scale.nearest(wanted, finest)
    row_scale = fit(ideal_rows * row_level, len(ideal_cols), settings.scale_per_octave)
    shift = drift(row_scale, ideal_rows * row_level) if free else 1.0  # what rows are off together, columns make good
    wanted = ideal_cols * col_level / shift
    col_scale = fit(wanted, len(ideal_rows), settings.scale_per_octave)
    if (
        reach := farthest(W, row_scale, col_scale)
    ) > 2 * LARGEST_CODE:  # rows that share a step lost the room they need
        col_scale = fit(wanted * (reach / LARGEST_CODE), len(ideal_rows), settings.scale_per_octave)
    rows, cols = spread.rows, spread.cols
    if free:
        if coarser(row_scale, settings) or coarser(col_scale, settings):  # another lattice has other codes
            spread = spreads(W, row_scale.values() / row_level, col_scale.values() / col_level)
            row_level, col_level = level_factors(spread, settings)
        rows = fitting_classes(spread.rows, row_scale, len(ideal_cols))
        cols = fitting_classes(spread.cols, col_scale, len(ideal_rows))
    return Lattice(
        row_scale.values() / row_level,
        col_scale.values() / col_level,
        row_scale,
        col_scale,
        Spread(rows, cols),
        ideal_rows * shift,
    )


def farthest(W: Tensor, rows: Scale, cols: Scale) -> float:
    """The largest code that W [C, R] would have on these scales."""
    largest = (W.abs() / torch.from_numpy(cols.values())[:, None]).amax(dim=0).double().numpy()
    return float((largest / rows.values()).max(initial=0.0))


def coarser(scale: Scale, settings: Settings) -> bool:
    """Whether the scale tells less than the settings would have it."""
    return scale.per_octave != settings.scale_per_octave or (len(scale.index) > 1 and not np.ptp(scale.index))


def rate_weights(rows: NDArray[np.float64], lattice: NDArray[np.float64], states: int) -> NDArray[np.float32]:
    """λ = 2·ln2·D of each row in squared lattice steps, where its lattice step is not the water-filled one exactly."""
    return (2 * math.log(2) * distortion(states) * (rows / lattice) ** 2).astype(np.float32)


def water_filled(W: Tensor, frame: Frame, c: float, states: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lattice steps of the rows [R] and columns [C] of W [C, R]; the rows' geometric mean is 1."""
    cols = c * math.sqrt(distortion(0) / distortion(states)) * frame.U.diagonal().double().numpy()
    rows = 1 / np.sqrt(frame.g)
    steps, largest = torch.from_numpy(cols).float()[:, None], np.empty(len(rows))
    for some in scratch.pieces(len(rows), len(cols)):
        largest[some] = (W[:, some].abs() / steps).amax(dim=0).double().numpy()
    rows = np.maximum(rows, largest / LARGEST_CODE)
    middle = math.exp(np.log(rows).mean())
    return rows / middle, cols * middle


def spreads(W: Tensor, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> Spread:
    """Spread classes of the codes of W [C, R]: a rank-one fit of their variances by alternating means.

    The variance that feedback adds to the targets is left out: counting it changed nothing at 2 and 3 bits.
    """
    V = W.numpy() / cols[:, None].astype(np.float32)
    np.divide(V, rows.astype(np.float32), out=V)
    np.square(V, out=V)
    tiny = np.float32(2.0**-16)  # a variance below this is zero for every purpose, and keeps rows of zeros finite
    across = np.ones(len(cols), np.float32)
    for _ in range(4):
        down = np.maximum((1 / across) @ V / len(across), tiny)
        across = np.maximum(V @ (1 / down) / len(down), tiny)
        across /= np.exp(np.log(across).mean())
    down = np.maximum((1 / across) @ V / len(across), tiny)
    classes = (np.rint(SPREAD_STEPS / 2 * np.log2(v)).astype(np.int32) for v in (down, across))
    return Spread(*classes)


def level_factors(spread: Spread, settings: Settings) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factors [R] and [C] whose product is about decoded level / lattice point for each entry."""
    classes = np.arange(-40, 41)  # beyond, levels no longer depend on the class
    factors = np.log(level_of_class(classes, settings)).astype(np.float32)
    weights = np.exp2(np.minimum(classes, 8) * (2 / SPREAD_STEPS)).astype(np.float32)  # by variance, while it matters
    rows, cols = np.empty(len(spread.rows), np.float32), np.empty(len(spread.cols), np.float32)

    def of(down: slice, across: slice) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        width = np.clip(spread.rows[None, down] + spread.cols[across, None], classes[0], classes[-1]) - classes[0]
        return weights[width], factors[width]

    for some in scratch.pieces(len(rows), len(cols)):
        weight, factor = of(some, slice(None))
        rows[some] = (weight * factor).sum(axis=0) / weight.sum(axis=0)
    for some in scratch.pieces(len(cols), len(rows)):
        weight, factor = of(slice(None), some)
        cols[some] = (weight * (factor - rows)).sum(axis=1) / weight.sum(axis=1)
    return np.exp(rows.astype(np.float64)), np.exp(cols.astype(np.float64))


def level_of_class(width: NDArray[np.signedinteger], settings: Settings) -> NDArray[np.float64]:
    """Decoded level over lattice point by spread class: least squared error / (1 − D/σ²)^unbias.

    Codes of least squared error keep only the share 1 − D/σ² of the weight, D being their distortion.
    """
    variance = np.exp2(width * (2 / SPREAD_STEPS))
    kept = np.clip(1 - distortion(settings.trellis) / variance, LEAST_KEPT, 1)
    least_squares = np.interp(width, *(LEVELS_CODED if settings.trellis else LEVELS_SCALAR))
    levels: NDArray[np.float64] = least_squares / kept**settings.unbias
    return levels
