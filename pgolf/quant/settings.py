"""How one matrix is to be quantized: a frozen bag of numbers that every quantizer reads the parts of that it knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pgolf.common import grammar
from pgolf.common.grammar import Range
from pgolf.errors import UsageError
from pgolf.packer.coder.trellis import PARITY_CHECKS
from pgolf.packer.plane import HALF

POSITIVE = Range(0, 1e9, above=True)
SHARE = Range(0, 10**6)  # of a mean: damping of 10^6 leaves no curvature
SCALES = (HALF, 1, 2, 4, 8, 16, 32, 64)
LOG_SCALE = 8  # default steps an octave of a coded scale: codes are rounded against the decoded one, so coarse is free


@dataclass(frozen=True)
class Settings:
    """Everything a quantizer may want to know besides the weights and their curvature.

    method: name in the registry `pgolf.quant.METHODS`.
    bits: integer grid, codes in ±(2^(bits-1) - 1); None lets the byte-budget search use the widest (8).
    step: the searched knob; every quantizer multiplies its step sizes by it, so bytes fall as it grows.
    k: SDClip's clip in standard deviations (PR #1394); percentile: RTN's clip quantile of |w| (1.0 = absmax).
    lam: strength of the Hessian in hessian-sdclip (PR #1412).
    damp: added to the diagonal of H, as a share of its mean; act_order and block: GPTQ's column order and lazy batch.
    trellis: states of the trellis code of method `auto`, 0 = scalar.
    damp_inputs, damp_outputs: method `auto` adds these shares of the mean to the diagonals of H and G. Right for 20,000
    calibration tokens and more; three times as much saved 0.02 bits a weight with 8,000, and cost as much with 65,000.
    two_sided: whether `auto` also feeds errors from row to row where it knows the whole of G.
    unbias: where `auto` puts its levels between least squared error (0) and no bias toward zero (1).
    scale_per_octave: resolution of coded scales; HALF (0) keeps IEEE half precision as the contest does.
    own: what a method of another package wants to know besides, an instance of its `Method.settings`.
    Raises UsageError for an unknown trellis and for what lies out of its range.
    """

    method: str = "sdclip"
    bits: int | None = None
    step: Annotated[float, POSITIVE] = 1.0
    k: Annotated[float | None, POSITIVE] = None
    percentile: Annotated[float, Range(0, 1, above=True)] = 1.0
    lam: Annotated[float, Range(0, 1e9)] = 0.175
    damp: Annotated[float, Range(0, 1e9)] = 0.01
    act_order: bool = True
    block: Annotated[int, Range(1, 10**9)] = 128
    trellis: int = 8
    damp_inputs: Annotated[float, SHARE] = 0.01
    damp_outputs: Annotated[float, SHARE] = 0.03
    two_sided: bool = True
    unbias: Annotated[float, Range(-2, 2)] = 0.5
    scale_per_octave: int = LOG_SCALE
    own: Any = None  # its class is known to its method alone

    def __post_init__(self) -> None:
        if self.trellis and self.trellis not in PARITY_CHECKS:
            known = ", ".join(map(str, sorted({0, *PARITY_CHECKS})))
            raise UsageError(f"a trellis of {self.trellis} states is not known; known: {known}")
        if self.scale_per_octave not in SCALES:
            raise UsageError(f"scale_per_octave is {self.scale_per_octave}: known: {', '.join(map(str, SCALES))}")
        grammar.check(self, "step")  # the search multiplies it beyond what people may say

    @property
    def top(self) -> int:
        """Largest code magnitude R of the integer grid."""
        return (1 << ((self.bits or 8) - 1)) - 1


__all__ = ["HALF", "LOG_SCALE", "Settings"]
