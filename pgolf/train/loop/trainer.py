"""The training loop: batches in, averaged weights out."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pgolf.data.shards import WindowSampler
from pgolf.errors import PgolfError, UsageError
from pgolf.models.products import by_onednn
from pgolf.train.loop.optim import OptimSettings, WeightAverage, build_optimizers, lr_scale
from pgolf.train.loop.process_group import Ranks
from pgolf.train.model.gpt import GPT
from pgolf.train.qat.hooks import QAT

# Measured: where a token occurs twice in a batch, most of its gradient is lost (relative error 0.97, 0 with torch 2.13).
MISCOMPILED = "torch.compile of torch 2.6 gets gradients of embeddings wrong on a CPU, training without"


@dataclass(frozen=True)
class TrainSettings:
    """steps: optimizer steps; minutes: of training; at least one of them, and what comes first ends the run.

    Without minutes, two runs with the same seed on one machine give the same weights, bit for bit (at the same number of
    threads). warmup, warmdown: shares of the run;
    grad_clip: bound of the gradient's norm; ema_decay: of the averaged weights, a step; accumulate: passes that share
    one update; each sees its part of the batch; loop_start: share of the run after which a model's loop is on.
    """

    steps: int | None = None
    minutes: float | None = None
    warmup: float = 0.02
    warmdown: float = 0.6
    grad_clip: float = 1.0
    ema_decay: float = 0.98
    accumulate: int = 1
    loop_start: float = 0.5
    optim: OptimSettings = field(default_factory=OptimSettings)

    def __post_init__(self) -> None:
        if not (self.steps or self.minutes):
            raise UsageError("training needs an end: give it steps or minutes above 0")
        if self.accumulate < 1:
            raise UsageError(f"accumulate {self.accumulate} must be at least 1")
        if not 0.0 <= self.loop_start < 1.0:
            raise UsageError(f"loop_start {self.loop_start:g} is a share of the run, from 0 to below 1")

    def progress(self, steps: int, seconds: float) -> float:
        """Share of the run that is over after `steps` updates and `seconds`, 0..1: the larger of the two shares."""
        by_step = steps / self.steps if self.steps else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_step, by_time))


@dataclass(frozen=True)
class StepInfo:
    """What a progress callback learns after step `step` (from 1).

    progress: share of the run, 0..1; loss: nats a token, before the update; grad_norm: before clipping; lr_scale: share
    of the peak learning rates; seconds: of training; tokens: seen so far; qat: whether QAT was on; rate: coded bits a
    weight as it estimates them, 0 where nobody asked. interrupted: whether any rank is to stop here.
    """

    step: int
    progress: float
    loss: float
    grad_norm: float
    lr_scale: float
    seconds: float
    tokens: int
    qat: bool = False
    rate: float = 0.0
    interrupted: bool = False


class Trainer:
    """One training run: `model(ids, targets)` returns the mean loss, `sampler.batch(step)` its windows.

    The model's device decides where it trains. compile: use torch.compile; where that fails the run goes on without,
    and `notes` says why. ranks: parts of a batch go round them, so two ranks see what one sees in two accumulation
    passes, in another order of summation. qat: hooks of this model; they are told of the progress before each update.
    Once QAT has started, forward and backward run on quantized weights; the optimizers and the average see the trained
    ones only, and the average needs no restart: it forgets the phase before within its own short memory.
    seconds: the clock; it counts `step` alone, neither compiling nor what a progress callback does between steps.
    """

    def __init__(
        self,
        model: nn.Module,
        sampler: WindowSampler,
        settings: TrainSettings,
        *,
        ranks: Ranks | None = None,
        compile: bool = False,
        qat: QAT | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self._parts = settings.accumulate * self.ranks.world
        if sampler.batch_size % self._parts:
            passes = f"{settings.accumulate} passes on {self.ranks.world} ranks"
            raise UsageError(f"a batch of {sampler.batch_size} windows does not divide into {passes}")
        self.model, self.sampler, self.settings, self.qat = model, sampler, settings, qat
        self.step_count, self.seconds = 0, 0.0
        self.notes: list[str] = []
        self.interrupted: threading.Event | None = None  # set by whoever wants the run to stop after a step
        self.device = next(model.parameters()).device
        self._looped = model if isinstance(model, GPT) and model.config.loop > 0 else None
        self.optimizers = build_optimizers(model, settings.optim)
        self.average = WeightAverage(model, settings.ema_decay)
        self._loss: Callable[[Tensor, Tensor], Tensor] = model
        self._compile = compile
        self._fetched: tuple[int, Tensor] | None = None
        self._follow(self.progress)

    @property
    def progress(self) -> float:
        """Share of the run that is over, 0..1."""
        return self.settings.progress(self.step_count, self.seconds)

    def run(self, progress: Callable[[StepInfo], None] | None = None) -> None:
        """Train to the end, then leave the averaged weights in the model."""
        self.model.train()
        with by_onednn(self.device):
            if self.progress < 1.0:
                self.warm_up()
            while self.progress < 1.0:
                info = self.step()
                if progress is not None:
                    progress(info)
        self.average.copy_to_model()
        self.model.eval()

    def warm_up(self) -> None:
        """Compile and fill caches with passes whose gradients are dropped; nothing that is trained changes."""
        if self._compile and self.device.type == "cpu" and torch.__version__.startswith("2.6."):
            self._compile = False
            self.notes.append(MISCOMPILED)
        if self._compile:
            self._loss = torch.compile(self.model, dynamic=False)
            try:
                self._dry_runs()
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                self.notes.append(f"torch.compile fails here, training without ({reason[:200]})")
                self._loss = self.model
            self.model.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            self._dry_runs()
            self.model.zero_grad(set_to_none=True)
            torch.cuda.synchronize(self.device)

    def _dry_runs(self) -> None:
        """A pass of each form that the model has from here to the end: without its loop, and with it."""
        for progress in sorted({self.progress, self.progress if self._looped is None else 1.0}):
            self._follow(progress)
            self._accumulate_gradients(self._batch(self.step_count))
        self._follow(self.progress)

    def _follow(self, progress: float) -> None:
        """Switch the model's loop on or off, as this share of the run has it; torch.compile guards the attribute."""
        if self._looped is not None:
            self._looped.looped = progress >= self.settings.loop_start

    def step(self) -> StepInfo:
        """One update of the weights and their average. PgolfError if the loss or its gradient is not finite."""
        began = time.perf_counter()
        quantized = self.qat is not None and self.qat.step(self.progress)
        loss_tensor = self._accumulate_gradients(self._batch(self.step_count))
        rate = self._close_qat() if quantized else 0.0
        self.ranks.mean_([p.grad for p in self.model.parameters() if p.grad is not None] + [loss_tensor])
        norm_tensor = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self._prefetch(self.step_count + 1)
        loss, norm = torch.stack([loss_tensor, norm_tensor]).tolist()  # the one wait for the device in an update
        self._check_finite(loss, norm)
        scale = self._update()
        wish = self.interrupted is not None and self.interrupted.is_set()
        now = self.seconds + time.perf_counter() - began
        self.seconds, stop = self.ranks.agree_on([now, float(wish)], self.device)
        self._follow(self.progress)
        tokens = self.step_count * self.sampler.batch_size * self.sampler.seq_len
        return StepInfo(
            self.step_count, self.progress, loss, norm, scale, self.seconds, tokens, quantized, rate, stop > 0
        )

    def averaged_state(self) -> dict[str, Tensor]:
        """The model's state dict with averaged weights, on the CPU."""
        state = {**self.model.state_dict(), **self.average.state_dict()["average"]}
        return {name: tensor.cpu() for name, tensor in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, apart from settings and data."""
        return {
            "step": self.step_count,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average.state_dict(),
            "qat": self.qat.state_dict() if self.qat else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`, to the bit on one rank if the run ends by steps."""
        self.step_count, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.average.load_state_dict(state["average"])
        self._follow(self.progress)
        if self.qat is not None and state.get("qat") is not None:
            self.qat.load_state_dict(state["qat"])

    def _close_qat(self) -> float:
        """Trained weights back in place, their gradients with the rate's part; the rate, in bits a weight."""
        assert self.qat is not None
        self.qat.restore()
        weight = self.qat.settings.rate
        if not weight:
            return 0.0
        rate = self.qat.rate()
        torch.autograd.backward(weight * rate)
        return rate.item()

    def _accumulate_gradients(self, windows: Tensor) -> Tensor:
        """Mean loss of this rank's parts of `windows` [batch, T + 1]; adds its gradient to the parameters'."""
        parts = windows.chunk(self._parts)[self.ranks.rank :: self.ranks.world]
        total = torch.zeros((), device=self.device)
        for part in parts:
            loss = self._loss(part[:, :-1], part[:, 1:]) / len(parts)
            torch.autograd.backward(loss)
            total += loss.detach()
        return total

    def _check_finite(self, loss: float, norm: float) -> None:
        if not math.isfinite(loss):
            raise PgolfError(f"the loss is {loss} at step {self.step_count + 1}: lower the learning rates")
        if not math.isfinite(norm):
            raise PgolfError(f"the gradient's norm is {norm} at step {self.step_count + 1}: lower the learning rates")

    def _update(self) -> float:
        """Step optimizers and average; the share of the peak learning rates that was used."""
        scale = lr_scale(self._midpoint(), warmup=self.settings.warmup, warmdown=self.settings.warmdown)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = scale * group["peak_lr"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update()
        self.step_count += 1
        return scale

    def _midpoint(self) -> float:
        """Progress for the schedule: neither the first step nor the last of a run by steps has a rate of zero."""
        by_step = (self.step_count + 1) / (self.settings.steps + 1) if self.settings.steps else 0.0
        per_step = self.seconds / max(self.step_count, 1)
        by_time = (self.seconds + per_step / 2) / (60 * self.settings.minutes) if self.settings.minutes else 0.0
        return min(1.0, max(by_step, by_time))

    def _batch(self, step: int) -> Tensor:
        """Windows of a step on the device: int64 [batch, T + 1]."""
        if self._fetched is None or self._fetched[0] != step:
            self._fetched = (step, self._move(self.sampler.batch(step)))
        return self._fetched[1]

    def _prefetch(self, step: int) -> None:
        """Start the copy of a later step's windows while this one computes; on a CPU there is nothing to overlap with."""
        if self.device.type == "cuda":
            self._batch(step)

    def _move(self, windows: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return windows.to(self.device)
        return windows.pin_memory().to(self.device, non_blocking=True)
