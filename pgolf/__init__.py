"""pgolf: make a trained language model small without making it worse.

    report = pgolf.pack(model, "model.pgolf", budget="16MB", curvature=pgolf.calibrate(model, batches))
    model.load_state_dict(pgolf.load("model.pgolf"))

Names are loaded when they are first used: importing pgolf imports neither torch nor anything else heavy.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pgolf.common import moved
from pgolf.common.when_imported import when_imported

if TYPE_CHECKING:
    from pgolf.fitting.estimate import Estimate, estimate
    from pgolf.fitting.packing import pack
    from pgolf.loading.anatomy import diff, inspect
    from pgolf.loading.dense import load, load_into
    from pgolf.loading.modules import load_module
    from pgolf.loading.opened import open
    from pgolf.quant.curvature.collect import calibrate
    from pgolf.quant.curvature.store import Curvature
    from pgolf.report import Report

__version__ = "0.1.0"
__all__ = [
    "Curvature", "Estimate", "Report", "calibrate", "diff", "estimate", "inspect", "load", "load_into", "load_module",
    "open", "pack",
]  # fmt: skip

_HOMES = {
    "pack": "fitting.packing", "load": "loading.dense", "load_into": "loading.dense", "load_module": "loading.modules",
    "open": "loading.opened",
    "diff": "loading.anatomy", "inspect": "loading.anatomy",
    "calibrate": "quant.curvature.collect", "Curvature": "quant.curvature.store", "Report": "report",
    "estimate": "fitting.estimate", "Estimate": "fitting.estimate",
}  # fmt: skip

sys.meta_path.insert(0, moved.Finder())
when_imported(  # so that from_pretrained opens folders whose weights are an artifact
    "transformers.quantizers.auto", lambda: import_module("pgolf.loading.transformers_quantizer").register()
)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pgolf' has no attribute {name!r}")
    return getattr(import_module(f"pgolf.{_HOMES[name]}"), name)
