"""How one matrix is to be quantized: a frozen bag of numbers that every quantizer reads the parts of that it knows."""

from __future__ import annotations

from dataclasses import dataclass

from pgolf.errors import UsageError
from pgolf.packer.coder.trellis import PARITY_CHECKS
from pgolf.packer.plane import HALF

RANGES = {  # beyond them a setting says nothing: damping of 10^6 leaves no curvature
    "damp_inputs": (0, 10**6), "damp_outputs": (0, 10**6), "unbias": (-2, 2), "two_sided": (0, 1),
}  # fmt: skip
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
    Raises UsageError for an unknown trellis and for shares out of range.
    """

    method: str = "sdclip"
    bits: int | None = None
    step: float = 1.0
    k: float | None = None
    percentile: float = 1.0
    lam: float = 0.175
    damp: float = 0.01
    act_order: bool = True
    block: int = 128
    trellis: int = 8
    damp_inputs: float = 0.01
    damp_outputs: float = 0.03
    two_sided: bool = True
    unbias: float = 0.5
    scale_per_octave: int = LOG_SCALE

    def __post_init__(self) -> None:
        if self.trellis and self.trellis not in PARITY_CHECKS:
            known = ", ".join(map(str, (0, *PARITY_CHECKS)))
            raise UsageError(f"a trellis of {self.trellis} states is not known; known: {known}")
        for name, (least, most) in RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise UsageError(f"{name} is {getattr(self, name)}: it must lie between {least} and {most}")

    @property
    def top(self) -> int:
        """Largest code magnitude R of the integer grid."""
        return (1 << ((self.bits or 8) - 1)) - 1


def describe(settings: Settings) -> str:
    """The settings that matter, for people: "gptq int6 k=12.85"."""
    words = [settings.method]
    if settings.method == "auto" and settings.trellis:
        words.append(f"trellis={settings.trellis}")
    if settings.method != "auto":
        words.append(f"int{settings.bits}")
    if settings.method in {"sdclip", "hessian-sdclip", "gptq"}:
        words.append(f"k={(settings.k or 0) * settings.step:.4g}")
    elif settings.step != 1.0:
        words.append(f"step={settings.step:.4g}")
    return " ".join(words)


__all__ = ["HALF", "LOG_SCALE", "Settings", "describe"]
