"""Modules that people imported and that have another name now: importing the old one fails with a line that says the new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

MOVED = {  # old: where its functions are now
    "pgolf.baselines": ["pgolf.fitting.baselines"],
    "pgolf.checkpoint": ["pgolf.models.checkpoint"],
    "pgolf.demo": ["pgolf.sweep.demo_story"],
    "pgolf.frontier": ["pgolf.sweep"],
    "pgolf.pipeline": ["pgolf.fitting.packing", "pgolf.loading.dense"],
    "pgolf.usermodel": ["pgolf.models.usermodel"],
    "pgolf.packer.artifact": ["pgolf.packer.format.artifact"],
    "pgolf.packer.codec": ["pgolf.packer.coder.codec"],
    "pgolf.packer.general": ["pgolf.packer.coder.general"],
    "pgolf.packer.spread": ["pgolf.packer.coder.classes"],
    "pgolf.quant.calibrate": ["pgolf.quant.curvature.collect"],
    "pgolf.quant.logits": ["pgolf.models.logits"],
    "pgolf.quant.selfgen": ["pgolf.quant.curvature.selftext"],
    "pgolf.train.bpb": ["pgolf.scoring.bpb", "pgolf.data.tokenizers"],
    "pgolf.train.caseops": ["pgolf.data.caseops"],
    "pgolf.train.compare": ["pgolf.scoring.paired"],
    "pgolf.train.corpus": ["pgolf.data.corpus"],
    "pgolf.train.data": ["pgolf.data.shards"],
    "pgolf.train.demo": ["pgolf.train.loop.demo_model"],
    "pgolf.train.documents": ["pgolf.scoring.documents"],
    "pgolf.train.export": ["pgolf.train.loop.pack_after"],
    "pgolf.train.metrics": ["pgolf.train.loop.metrics"],
    "pgolf.train.qat_settings": ["pgolf.train.qat.settings"],
    "pgolf.train.reading": ["pgolf.scoring.reading"],
    "pgolf.train.recipes": ["pgolf.train.loop.recipes"],
    "pgolf.train.run": ["pgolf.train.loop.run_folder"],
    "pgolf.train.save": ["pgolf.train.loop.save"],
    "pgolf.train.sidecar": ["pgolf.data.sidecar"],
    "pgolf.train.ttt": ["pgolf.scoring.ttt"],
}


class Finder:
    """First in sys.meta_path: where a package was, an updated checkout keeps a folder of caches, which Python would import."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raises ModuleNotFoundError for the names in MOVED. Without a `name` in it, which `from pgolf import` would swallow."""
        if name in MOVED:
            raise ModuleNotFoundError(f"{name} is now {' and '.join(MOVED[name])}")


def names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """`__getattr__` of a package that was a module: the names that people imported from it, each loaded from its home."""

    def of_package(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return of_package
