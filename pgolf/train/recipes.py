"""What `pgolf train` does for each preset: the model, its batches, its optimizers.

What will surprise you:
* `batch_size` counts the windows of one update, over all ranks and accumulation steps together.
* `golf` reads its text a dozen times or more, so its weight decay is the strong one that repeated data wants: with
  Muon's step of 0.02 the weights forget in about one epoch (arXiv 2509.14786 tunes it the same way).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pgolf.train.loop import TrainSettings
from pgolf.train.model import PRESETS, GPTConfig
from pgolf.train.optim import OptimSettings


@dataclass(frozen=True)
class Recipe:
    """seq_len: inputs of a window; batch_size: windows of one optimizer step."""

    model: GPTConfig
    train: TrainSettings
    batch_size: int
    seq_len: int

    def to_config(self, *, seed: int, tokenizer: str) -> dict[str, Any]:
        """The "config" of a checkpoint: plain data from which `pgolf.usermodel.from_config` rebuilds the model."""
        return {
            "arch": "pgolf.train.model:GPT",
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
            steps=500,
            warmdown=1.0,
            ema_decay=0.9,
            optim=OptimSettings(matrix_lr=0.06, embedding_lr=0.03, vector_lr=0.02, momentum=0.85),
        ),
        batch_size=8,
        seq_len=128,
    ),
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
