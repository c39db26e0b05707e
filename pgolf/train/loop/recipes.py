"""What `pgolf train` does for each preset: the model, its batches, its optimizers."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

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
    texts = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--set {item!r}: write name=value")
        texts[_find(recipe, name.strip())] = value.strip()
    changed: Recipe = _replaced(recipe, texts)
    return changed


def _find(recipe: Recipe, name: str) -> str:
    """The one dotted name that `name` is, or is the end of."""
    known = list(_names(recipe))
    matches = [full for full in known if full == name or full.endswith("." + name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"--set {name}: did you mean {' or '.join(matches)}?")
    near = difflib.get_close_matches(name, [full.rpartition(".")[2] for full in known], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    raise UsageError(f"--set {name}: no such setting; {hint}")


def _names(value: Any, prefix: str = "") -> Iterable[str]:
    for field in fields(value):
        inner = getattr(value, field.name)
        if is_dataclass(inner):
            yield from _names(inner, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _replaced(value: Any, texts: dict[str, str], prefix: str = "") -> Any:
    """`value` with the fields whose dotted names are in `texts` read from there, all at once: shapes must fit together."""
    new = {}
    for field in fields(value):
        name, inner = prefix + field.name, getattr(value, field.name)
        if is_dataclass(inner):
            new[field.name] = _replaced(inner, texts, name + ".")
        elif name in texts:
            new[field.name] = _parsed(type(value), field.name, texts[name])
    return replace(value, **new)


def _parsed(owner: type, name: str, text: str) -> Any:
    hint = typing.get_type_hints(owner)[name]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if text.lower() == "none" and type(None) in kinds:
        return None
    kind = int if int in kinds else float
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise UsageError(f"--set {name}={text}: {name} is {'a whole' if kind is int else 'a'} number, 0 or more")
    return number
