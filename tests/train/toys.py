"""What the tests of training share: small models that do something, a text that can be learned, runs of a few steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pgolf.data.shards import WindowSampler
from pgolf.train.loop.trainer import StepInfo
from pgolf.train.model.gpt import GPT, GPTConfig
from tests.helpers import generator

PLAIN = GPTConfig(vocab_size=50, layers=5, dim=64, heads=4, kv_heads=2, mlp_mult=2, rope_dims=8)
OPTIONS: dict[str, dict[str, Any]] = {
    "xsa": {"xsa": 2},
    "smear": {"smear": 1},
    "bigram": {"bigram_buckets": 128, "bigram_dim": 16},
    "loop": {"loop": 2, "loop_untied": 1},
    "resid_mix": {"resid_mix": 1},
    "spectral": {"spectral": 0.5},
    "attn_gate": {"attn_gate": 12},
    "value_residual": {"value_residual": 1},
    "lanes": {"lanes": 2},
}
ALL = {name: value for options in OPTIONS.values() for name, value in options.items()}
EVERY = [*OPTIONS.values(), ALL]
NAMES = [*OPTIONS, "all"]

CYCLE = np.tile(np.random.default_rng(0).permutation(16), 40).astype(np.uint16)

SMALL = ["vocab_size=64", "dim=32", "heads=2", "kv_heads=1", "rope_dims=8", "seq_len=16", "batch_size=4", "steps=6"]


def awake(options: dict[str, Any] | None = None, **keywords: Any) -> GPT:
    """A model of PLAIN and `options` in which everything that starts at zero does something."""
    model, g = GPT(replace(PLAIN, **(options or {})), **keywords), generator(1)
    with torch.no_grad():
        for param in model.parameters():
            if not param.any():
                param.normal_(0, 0.2, generator=g)
    return model


def random_ids(*shape: int) -> Tensor:
    """Tokens of PLAIN, none of which begins a document."""
    return torch.randint(2, PLAIN.vocab_size, shape, generator=generator(2))


def cycle_sampler(seed: int = 0) -> WindowSampler:
    """Windows of CYCLE, a text of 16 pieces in which each token says the next."""
    return WindowSampler([CYCLE], seq_len=16, batch_size=4, seed=seed)


def same(a: nn.Module | dict[str, Tensor], b: nn.Module | dict[str, Tensor]) -> bool:
    """Whether the parameters of two modules, or two state dicts, are equal to the bit."""
    mine, theirs = (dict(m.named_parameters()) if isinstance(m, nn.Module) else m for m in (a, b))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def weights(out: Path) -> dict[str, Tensor]:
    """What the checkpoint of a run's folder holds."""
    state: dict[str, Tensor] = torch.load(out / "checkpoint.pt", weights_only=True)["model"]
    return state


def stop_at(step: int) -> Callable[[StepInfo], None]:
    """A progress callback that presses Ctrl-C after `step`; the run notices after the next."""

    def press(info: StepInfo) -> None:
        if info.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return press
