"""What QAT costs: seconds of an update of our trainer without it, and with each way of rounding."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch

from pgolf.bench import clock
from pgolf.bench.sizes import Sizes
from pgolf.data.shards import WindowSampler
from pgolf.train.loop.recipes import RECIPES, Recipe, override
from pgolf.train.loop.trainer import Trainer
from pgolf.train.model.gpt import GPT
from pgolf.train.qat.hooks import QAT

ROUNDINGS = ("ste", "soft", "noise")
GRID = "int6,k=12.85"


def qat_overhead(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Median seconds of an update: "without", and for each rounding its own and what it takes more, as a share.

    On a processor the `tiny` preset is trained. The updates take turns, there and back, so that a busy machine is busy for
    all of them; the share is the median of those of the turns.
    """
    preset = sizes.trained if device.type == "cuda" else "tiny"
    recipe = override(RECIPES[preset], ["accumulate=2"])  # passes an update: halves the memory
    names = ("without", *ROUNDINGS)
    trainers = {name: _trainer(recipe, device, None if name == "without" else name) for name in names}
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(1 + sizes.updates):
        for name in names if turn % 2 else reversed(names):
            began = time.perf_counter()
            trainers[name].step()
            clock.wait()
            taken[name].append(time.perf_counter() - began)
    seconds = {name: statistics.median(some[1:]) for name, some in taken.items()}
    rows = {name: {"seconds": seconds[name], "overhead": _more(taken[name], taken["without"])} for name in ROUNDINGS}
    return {"preset": preset, "turns": sizes.updates, "without": {"seconds": seconds["without"]}, **rows}


def _more(seconds: list[float], without: list[float]) -> float:
    """What an update takes more, as a share: the median over the turns but the first."""
    return statistics.median(a / b for a, b in zip(seconds[1:], without[1:], strict=True)) - 1


def _trainer(recipe: Recipe, device: torch.device, rounding: str | None) -> Trainer:
    """Ready for updates of the recipe's size on random tokens; compiled on a GPU, as `pgolf train` does it."""
    cuda = device.type == "cuda"
    tokens = np.random.default_rng(0).integers(0, recipe.model.vocab_size, 8 * recipe.seq_len + 1).astype(np.uint16)
    sampler = WindowSampler([tokens], recipe.seq_len, recipe.batch_size, 0)
    model = GPT(recipe.model, compute_dtype=torch.bfloat16 if cuda else torch.float32).to(device)
    qat = None if rounding is None else QAT(model, GRID, start=0.0, rounding=rounding)
    trainer = Trainer(model.train(), sampler, recipe.train, compile=cuda, qat=qat)
    trainer.warm_up()
    return trainer
