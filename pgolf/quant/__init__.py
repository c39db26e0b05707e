"""Quantizers: pure functions (matrix, curvature, settings) → Plane, one a file, and the registry that names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pgolf.packer.plane import Plane
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.methods import auto, gptq, gptq_lite, quick, rtn, sdclip
from pgolf.quant.settings import Settings

Quantize = Callable[[Tensor, MatrixCurvature | None, Settings], Plane]


@dataclass(frozen=True)
class Staged:
    """quantize(w, c, s) == finish(w, prepare(w, c, s), s); prepare does not look at s.step.

    expected_bits: (weight, prepared, settings) → about what the codes will take, without rounding anything.
    """

    prepare: Callable[[Tensor, MatrixCurvature | None, Settings], Any]
    finish: Callable[[Tensor, Any, Settings], Plane]
    expected_bits: Callable[[Tensor, Any, Settings], float]


@dataclass(frozen=True)
class Method:
    """A quantizer and what the user should know of it.

    quantize: (weight float32 [R, C], its curvature or None, settings) → Plane.
    needs_curvature: it is worth collecting curvature for; without any, every method still works.
    packages: that it needs besides those of loading, see `pgolf.common.extras`.
    staged: the same in stages, where much of the work does not depend on settings.step.
    """

    name: str
    quantize: Quantize
    needs_curvature: bool
    description: str
    staged: Staged | None = None
    packages: tuple[str, ...] = ()


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "auto",
            auto.quantize,
            True,
            "water-filled steps, error feedback, trellis-coded rounding; never clips",
            Staged(auto.prepare, auto.finish, auto.expected_bits),
            ("numba", "scipy"),
        ),
        Method(
            "quick",
            quick.quantize,
            True,
            "steps from the curvature's diagonals, plain rounding: seconds where auto takes a minute",
            Staged(quick.prepare, quick.finish, quick.expected_bits),
            ("scipy",),
        ),
        Method("rtn", rtn.quantize, False, "round to nearest, row scale from absmax or a percentile"),
        Method("sdclip", sdclip.quantize, False, "round to nearest, row scale k·std/R"),
        Method("hessian-sdclip", sdclip.quantize_hessian, True, "sdclip with wider steps for rows on strong inputs"),
        Method("gptq-lite", gptq_lite.quantize, False, "round to nearest, clip percentile of least squared error"),
        Method("gptq", gptq.quantize, True, "error feedback with the full Hessian on sdclip's scales"),
    )
}

__all__ = ["METHODS", "MatrixCurvature", "Method", "Settings"]
