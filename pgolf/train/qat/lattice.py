"""Lattices of the quantizers themselves: what QAT rounds to, or makes noise of.

Nothing here computes a step size: row scales come from running the quantizer of the settings, the steps of `auto` from
its own water-filling. So weights that lie on a lattice are what packing them gives, to the bit. All tensors are
[n, R, C], n matrices of R rows; a plain matrix has n = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pgolf.errors import UsageError
from pgolf.packer.coder.classes import estimate_spread
from pgolf.packer.plane import SPREAD_STEPS, Scale
from pgolf.quant import METHODS, Settings
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.methods import auto
from pgolf.quant.methods.rows import decoded, decoded_on_device, row_scale
from pgolf.quant.methods.rtn import rtn_steps
from pgolf.quant.methods.sdclip import hessian_sdclip_steps, sdclip_steps

BISECTIONS = 12  # of the water level: to a hundredth of an octave
OCTAVES = 12.0  # searched on both sides of Settings.step = 1

# Steps [n, R] of methods whose grid without curvature is one scale a row; gptq rounds as sdclip then.
ROW_STEPS: dict[str, Callable[[Tensor, Settings], Tensor]] = {
    "sdclip": sdclip_steps,
    "gptq": sdclip_steps,
    "hessian-sdclip": lambda weight, settings: hessian_sdclip_steps(weight, None, settings),
    "rtn": rtn_steps,
}

Curvatures = Mapping[str, Sequence[MatrixCurvature | None]]


@dataclass(frozen=True)
class Lattice:
    """Points code · rows · cols with |code| ≤ top.

    rows: float32 [n, R, 1]. cols: float32 [n, 1, C], or None: 1. top: infinity where nothing is clipped.
    spread: how wide the codes are, as (rows [n, R, 1], cols [n, 1, C]) whose sum is SPREAD_STEPS · log2 of their
    standard deviation; None where nobody asked. spill: (left [n, R, R] or None, right [n, C, C]), an error E of plain
    rounding ends up as left·E·right; None: it stays where it is.
    """

    rows: Tensor
    cols: Tensor | None = None
    top: float = math.inf
    spread: tuple[Tensor, Tensor] | None = None
    spill: tuple[Tensor | None, Tensor] | None = None

    def codes(self, weight: Tensor) -> Tensor:
        """`weight` [n, R, C] in lattice steps, not rounded."""
        return weight / self.rows if self.cols is None else weight / (self.rows * self.cols)

    def weights(self, codes: Tensor) -> Tensor:
        """The inverse of `codes`, by the reconstruction rule: (code · row) · column."""
        return codes * self.rows if self.cols is None else codes * self.rows * self.cols

    def spilled(self, error: Tensor) -> Tensor:
        """Where an error [n, R, C] of plain rounding goes when the quantizer feeds it back."""
        if self.spill is None:
            return error
        left, right = self.spill
        error = error @ right
        return error if left is None else left @ error

    def sigma(self) -> Tensor:
        """Standard deviation of the codes [n, R, C], from their spread."""
        assert self.spread is not None
        return torch.exp2((self.spread[0] + self.spread[1]) / SPREAD_STEPS)


def row_lattice(weight: Tensor, settings: Settings) -> Lattice:
    """The grid that the quantizer of `settings` lays over float32 weight [n, R, C]: one scale a row, or column, or both.

    Methods of ROW_STEPS are asked for their steps alone. On a GPU these become scales there, as an update must not wait
    for the host. Raises UsageError for a method whose codes lie on a trellis.
    """
    if settings.method in ROW_STEPS:
        return Lattice(
            _row_scales(ROW_STEPS[settings.method](weight, settings), settings)[:, :, None], top=settings.top
        )
    method = METHODS[settings.method]
    planes = [method.quantize(matrix, None, settings) for matrix in weight]
    if any(plane.trellis for plane in planes):
        raise UsageError(f"QAT has no lattice for method {settings.method}: which of its codes may follow which varies")
    rows = torch.stack([_factors(p.row_scale, m[:, :1]) for p, m in zip(planes, weight, strict=True)])
    cols = torch.stack([_factors(p.col_scale, m[:1].T) for p, m in zip(planes, weight, strict=True)])
    top = settings.top if "bits" in method.reads else math.inf
    return Lattice(rows, cols.mT if any(p.col_scale for p in planes) else None, top=top)


def parted(lattice: Lattice, count: int) -> list[Lattice]:
    """A grid without spread or spill over some parameters' matrices, as one for each parameter of `count`."""
    rows = torch.split(lattice.rows, count)
    cols = [None] * len(rows) if lattice.cols is None else torch.split(lattice.cols, count)
    return [Lattice(*parts, top=lattice.top) for parts in zip(rows, cols, strict=True)]


def joined(lattices: Sequence[Lattice]) -> Lattice:
    """The inverse of `parted`, spreads included: equal grids of several parameters as one."""
    if len(lattices) == 1:
        return lattices[0]
    rows = torch.cat([lattice.rows for lattice in lattices])
    cols = [lattice.cols for lattice in lattices if lattice.cols is not None]
    spreads = [lattice.spread for lattice in lattices if lattice.spread is not None]
    spread = (torch.cat([rows for rows, _ in spreads]), torch.cat([cols for _, cols in spreads])) if spreads else None
    return Lattice(rows, torch.cat(cols) if cols else None, lattices[0].top, spread)


def _row_scales(steps: Tensor, settings: Settings) -> Tensor:
    """float32 [n, R]: what an artifact would hold of the steps [n, R] of n matrices."""
    if steps.device.type != "cpu":
        return decoded_on_device(steps, settings)
    return torch.stack([decoded(row_scale(matrix, settings), matrix) for matrix in steps])


def _factors(scale: Scale | None, like: Tensor) -> Tensor:
    """float32 [n, 1]: the values of a scale of n = len(like), 1 where there is none."""
    return torch.ones_like(like) if scale is None else decoded(scale, like)[:, None]


def auto_lattices(
    weights: Mapping[str, Tensor], curvatures: Curvatures, settings: Mapping[str, Settings], bits: float
) -> dict[str, Lattice]:
    """The lattices of `auto` for float32 weights [n, R, C] at the water level where codes take `bits` bits a weight.

    A lattice stands for what its trellis does to a weight: its steps are those of plain rounding with the same squared
    error. With H⁻¹ = UᵀU and G⁻¹ = VᵀV the error of `auto` is c·VᵀZU for white Z: the noise of the lattice times unit
    triangular matrices from both sides, which are its `spill`.
    A matrix without curvature gets what `auto` gives it then: an equal relative error.
    """
    parameters = [_prepared(weight, curvatures.get(name), settings[name]) for name, weight in weights.items()]
    total = sum(weight.numel() for weight in weights.values())
    step = _level(lambda step: sum(parameter.expected_bits(step) for parameter in parameters), bits * total)
    return {name: parameter.lattice(step) for name, parameter in zip(weights, parameters, strict=True)}


@dataclass(frozen=True)
class _Parameter:
    """A parameter's n matrices [R, C], each with what `auto` prepared of it, ready for any step."""

    settings: Settings
    matrices: list[tuple[Tensor, auto.Prepared]]

    def expected_bits(self, step: float) -> float:
        settings = replace(self.settings, step=step * self.settings.step)
        return sum(auto.expected_bits(matrix.cpu(), prepared, settings) for matrix, prepared in self.matrices)

    def lattice(self, step: float) -> Lattice:
        return _stacked([_frame_lattice(matrix, made, self.settings, step) for matrix, made in self.matrices])


def _prepared(weight: Tensor, curvatures: Sequence[MatrixCurvature | None] | None, settings: Settings) -> _Parameter:
    known = zip(weight.cpu(), curvatures or [None] * len(weight), strict=True)
    prepared = [auto.prepare(matrix, curvature, settings) for matrix, curvature in known]
    return _Parameter(settings, list(zip(weight, prepared, strict=True)))


def _level(size: Callable[[float], float], wanted: float) -> float:
    """The step at which `size` is `wanted`."""
    low, high = -OCTAVES, OCTAVES
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if size(2**middle) > wanted else (low, middle)
    return float(2**high)


def _frame_lattice(weight: Tensor, prepared: auto.Prepared, settings: Settings, step: float) -> Lattice:
    frame, states = prepared.frame, settings.trellis
    ordered = weight.cpu()[:, frame.order].T.contiguous()
    rows, cols = auto.water_filled(ordered, frame, prepared.unit * settings.step * step, states)
    alike = math.sqrt(12 * auto.distortion(states))  # the step of plain rounding with the trellis code's squared error
    back = frame.order.argsort()
    right = (frame.U / frame.U.diagonal()[:, None])[back][:, back].to(weight.device)
    left = None if frame.V is None else (frame.V / frame.V.diagonal()[:, None]).mT.contiguous().to(weight.device)
    cols = cols[back.numpy()]
    return Lattice(_tensor(alike * rows, weight)[:, None], _tensor(cols, weight)[None, :], spill=(left, right))


def _stacked(lattices: Sequence[Lattice]) -> Lattice:
    """The lattices of one parameter's matrices, which are alike, as one."""
    cols = [lattice.cols for lattice in lattices if lattice.cols is not None]
    spills = [lattice.spill for lattice in lattices if lattice.spill is not None]
    lefts = [left for left, _ in spills if left is not None]
    right = torch.stack([right for _, right in spills])
    left = torch.stack(lefts) if len(lefts) == len(lattices) else None
    return Lattice(torch.stack([lattice.rows for lattice in lattices]), torch.stack(cols), spill=(left, right))


def with_spread(lattice: Lattice, weight: Tensor) -> Lattice:
    """`lattice` with the spread of the codes of weight [n, R, C], as the packer's coder estimates it."""
    squares = lattice.codes(weight).square().cpu().numpy()
    found = [estimate_spread(square) for square in squares]
    rows = _tensor(np.stack([spread.rows for spread in found]), weight)
    cols = _tensor(np.stack([spread.cols for spread in found]), weight)
    return replace(lattice, spread=(rows[:, :, None], cols[:, None, :]))


def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(like.device)
