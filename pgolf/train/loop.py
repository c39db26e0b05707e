"""The training loop: batches in, averaged weights out.

What will surprise you:
* The number of steps is fixed, not the time: two runs with the same seed on one machine give the same weights, bit for
  bit (at the same number of threads).
* After `Trainer.run` the model holds the moving average of its weights, which is what gets packed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from pgolf.errors import PgolfError
from pgolf.train.data import WindowSampler
from pgolf.train.optim import OptimSettings, WeightAverage, build_optimizers, lr_scale


@dataclass(frozen=True)
class TrainSettings:
    """steps: optimizer steps; warmup, warmdown: shares of them; grad_clip: bound of the gradient's norm;
    ema_decay: of the averaged weights, a step.
    """

    steps: int
    warmup: float = 0.02
    warmdown: float = 0.6
    grad_clip: float = 1.0
    ema_decay: float = 0.98
    optim: OptimSettings = field(default_factory=OptimSettings)


@dataclass(frozen=True)
class StepInfo:
    """What a progress callback learns after step `step` of `steps` (from 1); loss in nats a token."""

    step: int
    steps: int
    loss: float
    seconds: float
    tokens: int


class Trainer:
    """One training run: `model(ids, targets)` returns the mean loss, `sampler.batch(step)` its windows."""

    def __init__(self, model: nn.Module, sampler: WindowSampler, settings: TrainSettings) -> None:
        self.model, self.sampler, self.settings = model, sampler, settings
        self.step_count = 0
        self.device = next(model.parameters()).device
        self.optimizers = build_optimizers(model, settings.optim)
        self.average = WeightAverage(model, settings.ema_decay)

    def run(self, progress: Callable[[StepInfo], None] | None = None) -> None:
        """Train to the last step, then leave the averaged weights in the model."""
        began = time.perf_counter()
        self.model.train()
        while self.step_count < self.settings.steps:
            loss = self.step()
            if progress is not None:
                tokens = self.step_count * self.sampler.batch_size * self.sampler.seq_len
                progress(StepInfo(self.step_count, self.settings.steps, loss, time.perf_counter() - began, tokens))
        self.average.copy_to_model()
        self.model.eval()

    def step(self) -> float:
        """One update of the weights and their average; the loss before it. PgolfError if that is not finite."""
        windows = self.sampler.batch(self.step_count).to(self.device)
        loss_tensor = self.model(windows[:, :-1], windows[:, 1:])
        loss = loss_tensor.item()
        if not math.isfinite(loss):
            raise PgolfError(f"the loss is {loss} at step {self.step_count + 1}: lower the learning rates")
        loss_tensor.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        scale = lr_scale(
            (self.step_count + 1) / (self.settings.steps + 1),
            warmup=self.settings.warmup,
            warmdown=self.settings.warmdown,
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = scale * group["peak_lr"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update()
        self.step_count += 1
        return loss
