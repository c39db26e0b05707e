"""What QAT is told and what it says: settings, how they are written in one line, and the report of what is touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from pgolf.common import grammar
from pgolf.errors import UsageError
from pgolf.fitting import plan
from pgolf.train.qat.rounding import ROUNDINGS


@dataclass(frozen=True)
class QATSettings:
    """What the packer will be told, and how training prepares for it.

    grid: as after the = of `pgolf pack --set '*='`, "int6,k=12.85" or "auto"; "": the packer's default. rules: more of
    them, with their patterns, the later ones winning. start: share of training without QAT. rounding: "ste", "soft",
    "noise". bits: a weight, for method `auto`: its water level. recalibrate: share of training after which the lattices
    of `auto` are made anew. rate: weight of the coded bits a weight in the loss, for trainers that read it.
    """

    grid: str = ""
    rules: tuple[str, ...] = ()
    start: float = 0.85
    rounding: str = "ste"
    bits: float = 3.0
    recalibrate: float = 0.05
    rate: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounding not in ROUNDINGS:
            raise UsageError(f"QAT rounding {self.rounding!r}: known are {', '.join(ROUNDINGS)}")
        if not 0 <= self.start < 1:
            raise UsageError(f"QAT start {self.start:g} must lie between 0 and 1: it is a share of the training")
        if not (0 < self.bits <= 16 and 0 < self.recalibrate <= 1 and self.rate >= 0):
            raise UsageError("QAT bits must lie in 0..16, recalibrate in 0..1, and rate must not be negative")


class QATOptions(TypedDict, total=False):
    """What `QAT` takes by name as QATSettings does."""

    start: float
    rounding: str
    bits: float
    recalibrate: float
    rate: float
    seed: int


@dataclass(frozen=True)
class QATReport:
    """touched: name -> (shape, how). kept: name -> why it is left alone."""

    touched: dict[str, tuple[tuple[int, ...], str]]
    kept: dict[str, str]
    weights: int
    total: int

    @property
    def headline(self) -> str:
        """How many tensors and weights are touched."""
        return f"QAT touches {len(self.touched)} tensors, {self.weights:,} of {self.total:,} weights"

    def __str__(self) -> str:
        rows = [f"  {name} {list(shape)}: {how}" for name, (shape, how) in self.touched.items()]
        return "\n".join([self.headline, *rows, *(f"  {name}: left alone, {why}" for name, why in self.kept.items())])


def parse_options(text: str) -> QATSettings:
    """'int6,k=12.85,start=0.85,rounding=noise' -> QATSettings: its own names are read here, the rest is the grid."""
    words, option = grammar.words_of(text), f"--qat {text!r}"
    mine = {name: kind for name, kind in grammar.kinds(QATSettings).items() if name != "grid"}
    plan.read_settings(words, None, option=option, more=mine)  # what nobody understands, before there is a model
    grid = [word for word in words if word.partition("=")[0].strip() not in mine]
    options: dict[str, Any] = grammar.read((w for w in words if w not in grid), mine, option=option)
    return QATSettings(grid=",".join(grid), **options)
