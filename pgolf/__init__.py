"""pgolf: make a trained language model small without making it worse.

    report = pgolf.pack(model, "model.pgolf", budget="16MB", curvature=pgolf.calibrate(model, batches))
    model.load_state_dict(pgolf.load("model.pgolf"))

Names are loaded when they are first used: importing pgolf imports neither torch nor anything else heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgolf.anatomy import diff, inspect
    from pgolf.forecast import Estimate, estimate
    from pgolf.kernels.modules import load_module
    from pgolf.pipeline import load, load_into, pack
    from pgolf.quant.calibrate import calibrate
    from pgolf.quant.curvature import Curvature
    from pgolf.report import Report

__version__ = "0.1.0"
__all__ = [
    "Curvature", "Estimate", "Report", "calibrate", "diff", "estimate", "inspect", "load", "load_into", "load_module",
    "pack",
]  # fmt: skip

_HOMES = {
    "pack": "pipeline", "load": "pipeline", "load_into": "pipeline", "load_module": "kernels.modules",
    "diff": "anatomy", "inspect": "anatomy",
    "calibrate": "quant.calibrate", "Curvature": "quant.curvature", "Report": "report",
    "estimate": "forecast", "Estimate": "forecast",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pgolf' has no attribute {name!r}")
    return getattr(import_module(f"pgolf.{_HOMES[name]}"), name)
