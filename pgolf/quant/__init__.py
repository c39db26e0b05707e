"""Quantizers: pure functions (matrix, curvature, settings) → Plane, one a file, and the registry that names them."""

from __future__ import annotations

from pgolf.common.grammar import Range
from pgolf.common.registry import Registry
from pgolf.packer.plane import Plane, Scale
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.method import Method, Staged, checked
from pgolf.quant.methods import auto, gptq, gptq_lite, quick, rtn, sdclip
from pgolf.quant.settings import Settings

_OURS = (
    Method(
        "auto",
        auto.quantize,
        True,
        "water-filled steps, error feedback, trellis-coded rounding; never clips",
        Staged(auto.prepare, auto.finish, auto.expected_bits, auto.kind, auto.finish_together),
        reads=("trellis", "damp_inputs", "damp_outputs", "two_sided", "unbias"),
        packages=("numba", "scipy"),
        any_dtype=True,
    ),
    Method(
        "quick",
        quick.quantize,
        True,
        "steps from the curvature's diagonals, plain rounding: seconds where auto takes a minute",
        Staged(quick.prepare, quick.finish, quick.expected_bits),
        reads=("damp_inputs", "damp_outputs"),
        packages=("scipy",),
    ),
    Method(
        "rtn",
        rtn.quantize,
        False,
        "round to nearest, row scale from absmax or a percentile",
        reads=("bits", "percentile"),
    ),
    Method("sdclip", sdclip.quantize, False, "round to nearest, row scale k·std/R", reads=("bits", "k")),
    Method(
        "hessian-sdclip",
        sdclip.quantize_hessian,
        True,
        "sdclip with wider steps for rows on strong inputs",
        reads=("bits", "k", "lam"),
    ),
    Method(
        "gptq-lite",
        gptq_lite.quantize,
        False,
        "round to nearest, clip percentile of least squared error",
        reads=("bits",),
    ),
    Method(
        "gptq",
        gptq.quantize,
        True,
        "error feedback with the full Hessian on sdclip's scales",
        reads=("bits", "k", "damp", "act_order", "block"),
    ),
)

METHODS: Registry[Method] = Registry("method", "pgolf.methods", {m.name: m for m in _OURS}, checked)


def register(method: Method) -> None:
    """Know a method in this process; an entry point of the group `pgolf.methods` makes it known in every one.

    A name that was registered before is replaced. Raises UsageError for the names of pgolf's own methods.
    """
    METHODS.register(method.name, method)


def describe(settings: Settings) -> str:
    """The settings that matter to their method, for people: "gptq int6 k=12.85"."""
    return METHODS[settings.method].describe(settings)


__all__ = [
    "METHODS",
    "MatrixCurvature",
    "Method",
    "Plane",
    "Range",
    "Scale",
    "Settings",
    "Staged",
    "describe",
    "register",
]
