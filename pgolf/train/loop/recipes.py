"""What `pgolf train` does for each preset: the model, its batches, its optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

from pgolf.common import grammar
from pgolf.errors import UsageError
from pgolf.train.loop.optim import OptimSettings
from pgolf.train.loop.trainer import TrainSettings
from pgolf.train.model.gpt import PRESETS, GPTConfig
from pgolf.train.model.rebuild import ARCH


@dataclass(frozen=True)
class Recipe:
    """seq_len: inputs of a window; batch_size: windows of one optimizer step, over all ranks and passes together."""

    model: GPTConfig
    train: TrainSettings
    batch_size: int
    seq_len: int

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.seq_len < 1:
            raise UsageError(f"batch_size {self.batch_size} and seq_len {self.seq_len} must be at least 1")

    def to_config(self, *, seed: int, tokenizer: str) -> dict[str, Any]:
        """The "config" of a checkpoint: plain data from which `pgolf.train.model.rebuild.from_config` rebuilds the model."""
        return {
            "arch": ARCH,
            "gpt": asdict(self.model),
            "train": {**asdict(self.train), "batch_size": self.batch_size, "seq_len": self.seq_len},
            "seed": seed,
            "tokenizer": tokenizer,
        }


RECIPES = {
    # About a minute on 2 cores. So few steps want high learning rates, little momentum and a short average.
    "tiny": Recipe(
        model=PRESETS["tiny"],
        train=TrainSettings(
            steps=380,
            warmdown=1.0,
            ema_decay=0.9,
            optim=OptimSettings(matrix_lr=0.06, embedding_lr=0.03, vector_lr=0.02, momentum=0.85),
        ),
        batch_size=8,
        seq_len=128,
    ),
    "small": Recipe(
        model=PRESETS["small"],
        train=TrainSettings(
            minutes=20.0,
            warmdown=1.0,
            ema_decay=0.95,
            optim=OptimSettings(matrix_lr=0.05, embedding_lr=0.04, vector_lr=0.02, momentum=0.9),
        ),
        batch_size=12,
        seq_len=256,
    ),
    # It reads its text a dozen times or more, so its weight decay is the strong one that repeated data wants: with Muon's
    # step of 0.02 the weights forget in about one epoch (arXiv 2509.14786 tunes it the same way).
    "golf": Recipe(
        model=PRESETS["golf"],
        train=TrainSettings(
            minutes=8.0,
            warmup=0.01,
            warmdown=0.7,
            ema_decay=0.995,
            optim=OptimSettings(
                matrix_lr=0.02,
                embedding_lr=0.03,
                vector_lr=0.02,
                momentum=0.95,
                matrix_decay=0.3,
                embedding_decay=0.1,
            ),
        ),
        batch_size=128,
        seq_len=1024,
    ),
}


def override(recipe: Recipe, items: Iterable[str]) -> Recipe:
    """The recipe with "name=value" settings changed; names as in the dataclasses, or dotted: "train.optim.matrix_lr".

    UsageError for a name that is unknown or stands in two places, and for a value that its field cannot hold.
    """
    said: dict[str, grammar.Value] = {}
    for item in items:
        found = grammar.read(grammar.words_of(item), grammar.kinds(Recipe), option=f"--set {item!r}")
        for name, value in found.items():
            if isinstance(value, (int, float)) and value < 0:
                raise UsageError(f"--set {item!r}: {name} is {value}: it must be 0 or more")
        said |= found
    changed: Recipe = _replaced(recipe, said)
    return changed


def _replaced(value: Any, said: Mapping[str, grammar.Value], prefix: str = "") -> Any:
    """`value` with the fields whose dotted names are in `said`, all at once: shapes must fit together."""
    new = {}
    for field in fields(value):
        name, inner = prefix + field.name, getattr(value, field.name)
        if is_dataclass(inner):
            new[field.name] = _replaced(inner, said, name + ".")
        elif name in said:
            new[field.name] = said[name]
    return replace(value, **new)
