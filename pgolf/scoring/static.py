"""Losses at the speed of a GPU: batches of one shape, a compiled model, the head and its losses some tokens at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pgolf.kernels.softcap_nll import head_nll, softcap_nll
from pgolf.models.logits import Logits


@runtime_checkable
class HiddenThenHead(Protocol):
    """A model that gives what its head multiplies and the head by itself, as our own does.

    Then only the hidden states are computed whole. Of any other model the logits are, in its own dtype, but never a
    float32 copy of them.
    """

    compute_dtype: torch.dtype

    def forward_hidden(self, ids: Tensor) -> Tensor:
        """int64 [B, T] -> [B, T, D]."""

    def head(self) -> tuple[Tensor, float]:
        """(weight [V, D], softcap): logits are softcap · tanh(hidden @ weightᵀ / softcap)."""


class StaticLosses:
    """(ids int64 [B, T + 1], skip) -> float32 [B, T - skip], nats of the targets: `losses` of `bpb.score_windows`.

    model: in place on its device; logits_fn: of it, ids [B, T] -> logits [B, T, V]. batch_size: windows of a batch; one
    with fewer is filled up with copies, because another shape would compile again. Windows shorter than seq_len (a
    text's last one) run uncompiled. compile_seconds: of a first pass that is thrown away, for reporting apart.
    """

    def __init__(
        self,
        model: nn.Module,
        logits_fn: Callable[[Tensor], Tensor],
        *,
        seq_len: int,
        batch_size: int,
        compile: bool = True,
    ) -> None:
        self.seq_len, self.batch_size, self.compile_seconds = seq_len, batch_size, 0.0
        self._plain, self._finish = _halves(model, logits_fn)
        self._compiles = compile
        self._compiled: Callable[[Tensor], Tensor] | None = None

    def __call__(self, ids: Tensor, skip: int) -> Tensor:
        inputs, targets = ids[:, :-1], ids[:, 1 + skip :]
        full_length = self._compiles and inputs.shape[1] == self.seq_len
        states = self._static(inputs) if full_length else self._plain(inputs)
        some = states[: len(ids), skip:].flatten(0, 1)
        return self._finish(some, targets.flatten()).view(targets.shape)

    def _static(self, inputs: Tensor) -> Tensor:
        missing = self.batch_size - len(inputs)
        full = torch.cat([inputs, inputs[:1].expand(missing, -1)]) if missing else inputs.contiguous()
        if self._compiled is None:
            began = time.perf_counter()
            self._compiled = self._made(full)
            self._compiled(full)
            if full.is_cuda:
                torch.cuda.synchronize(full.device)
            self.compile_seconds = time.perf_counter() - began
        return self._compiled(full)

    def _made(self, full: Tensor) -> Callable[[Tensor], Tensor]:
        """What is called for whole batches: compiled, and without the checks of ids, which were made of the text."""
        raw = self._plain.unchecked(full) if isinstance(self._plain, Logits) else self._plain
        compiled: Callable[[Tensor], Tensor] = torch.compile(raw, dynamic=False)
        return compiled


def _halves(
    model: nn.Module, logits_fn: Callable[[Tensor], Tensor]
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """(ids [B, T] -> states [B, T, D], (states [N, D], targets [N]) -> nats [N]); states are hidden ones or logits."""
    if not isinstance(model, HiddenThenHead):
        return logits_fn, softcap_nll
    weight, softcap = model.head()
    return model.forward_hidden, lambda states, targets: head_nll(states, weight.to(states.dtype), targets, softcap)


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model where it is to run; on CUDA one with a head apart computes in bfloat16, as it was trained there."""
    if isinstance(model, HiddenThenHead) and device.type == "cuda":
        model.compute_dtype = torch.bfloat16
    return model.to(device)
