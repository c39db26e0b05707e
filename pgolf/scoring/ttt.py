"""Score-first test-time training: every document teaches the model about itself, and is forgotten at its end.

A document is cut into chunks. A chunk is scored, and only then one step is taken on its loss, in low-rank additions B A
to the model's matrices (LoRA, arXiv 2106.09685; one set a document as in openai/parameter-golf #77; A stays as it was
drawn, arXiv 2308.03303). The forward pass that scores a chunk is the one that is learned from: no second pass, and no
way to learn first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from pgolf.common.progress import Advance
from pgolf.data.shards import check_vocabulary
from pgolf.errors import ModelError, UsageError
from pgolf.models.logits import device_of, logits_of, original, undisturbed
from pgolf.scoring.bpb import num_targets
from pgolf.scoring.windows import Window, chunk_windows, segments

SEED = 0  # of A
TINY = 1e-30  # a matrix without gradient stays as it is


@dataclass(frozen=True)
class TTTSettings:
    """rank: of the additions; chunk: targets between two steps, fewer learn more and take longer; lr: the share of its
    own size by which a step moves a matrix."""

    rank: int = 8
    chunk: int = 128
    lr: float = 0.001

    def __post_init__(self) -> None:
        if self.rank < 1 or self.chunk < 1 or not self.lr > 0:
            raise UsageError("test-time training needs a rank and a chunk of at least 1 and a positive learning rate")


def score_and_learn(
    model: nn.Module,
    tokens: NDArray[np.integer],
    starts: NDArray[np.integer],
    *,
    seq_len: int,
    settings: TTTSettings = TTTSettings(),
    logits: Callable[..., Any] | str | None = None,
    progress: Advance | None = None,
) -> NDArray[np.float32]:
    """float32 [N - 1]: nats of every target of `tokens` [N], each scored before anything is learned from it.

    Every document begins from the model itself. Its last chunk teaches nobody, so it takes no step.
    starts: positions of the documents' first tokens; neither context nor additions cross them. seq_len: longest
    context, the chunk included. logits: as in `pgolf.models.logits.logits_of`. progress: called with (scored, total)
    after every document. Raises UsageError, DataError for tokens that the model does not know, ModelError.
    """
    if settings.chunk > seq_len:
        raise UsageError(f"a chunk of {settings.chunk} tokens must fit the sequence length {seq_len}")
    total = num_targets(tokens)
    nats = np.empty(total, np.float32)
    runner = _Runner(original(model), logits)
    with undisturbed(runner.model, gradients=False):
        runner.check(tokens, min(seq_len, total))
        learner = _Learner(runner, settings)
        for first, end in segments(total, starts):
            learner.forget()
            for window in chunk_windows(first, end, seq_len, settings.chunk):
                nats[window.scored : window.stop] = learner.score(tokens, window, learn=window.stop < end)
            if progress is not None:
                progress(end, total)
    return nats


class _Runner(nn.Module):
    """The model and how to get its logits, as one module, so that `functional_call` can exchange its weights."""

    def __init__(self, model: nn.Module, logits: Callable[..., Any] | str | None) -> None:
        super().__init__()
        self.model = model
        self._run = logits_of(model, logits)

    def forward(self, ids: Tensor) -> Tensor:
        return self._run(ids)

    def check(self, tokens: NDArray[np.integer], length: int) -> None:
        """DataError for tokens beyond the vocabulary."""
        place = device_of(self.model)
        check_vocabulary(tokens, self(torch.zeros(1, length, dtype=torch.int64, device=place)).size(-1))


class _Learner:
    """The additions B A of one document: A, fixed, is shared by all documents.

    Any matrix or bank of any model is adapted: the model runs with W + B A in the place of W. Its own weights are never
    written, so they are bit-identical afterwards. Weights stored in bfloat16 round small additions away.
    """

    def __init__(self, runner: _Runner, settings: TTTSettings) -> None:
        self._runner, self._settings = runner, settings
        self._weights = {n: p.detach() for n, p in runner.named_parameters() if p.dim() in (2, 3) and p.numel()}
        if not self._weights:
            raise ModelError("the model has no matrix that test-time training could adapt")
        generator = torch.Generator().manual_seed(SEED)
        self._down = {name: _down(weight, settings.rank, generator) for name, weight in self._weights.items()}
        self.forget()

    def forget(self) -> None:
        """Start from the model itself."""
        self._up = {
            name: torch.zeros(*weight.shape[:-1], self._down[name].shape[-2], device=weight.device, requires_grad=True)
            for name, weight in self._weights.items()
        }

    def score(self, tokens: NDArray[np.integer], window: Window, *, learn: bool) -> NDArray[np.float32]:
        """float32 [stop - scored]: nats of the window's scored targets; then, if asked, one step on their mean."""
        with torch.set_grad_enabled(learn):
            losses = self._losses(tokens, window)
            nats: NDArray[np.float32] = losses.detach().cpu().numpy()
            if not np.isfinite(nats).all():
                where = f"between tokens {window.start} and {window.stop}"
                raise ModelError(f"the model's logits are not finite {where}: lower --ttt-lr if only --ttt finds this")
            if learn:
                self._learn(losses.mean())
        return nats

    def _losses(self, tokens: NDArray[np.integer], window: Window) -> Tensor:
        ids = torch.from_numpy(tokens[window.start : window.stop + 1].astype(np.int64))
        ids = ids.to(device_of(self._runner))
        logits = functional_call(self._runner, self._adapted(), (ids[None, :-1],))[0]
        skip = window.scored - window.start
        return F.cross_entropy(logits[skip:].float(), ids[skip + 1 :], reduction="none")

    def _adapted(self) -> dict[str, Tensor]:
        return {
            name: weight + (self._up[name] @ self._down[name]).to(weight.dtype)
            for name, weight in self._weights.items()
        }

    def _learn(self, loss: Tensor) -> None:
        """Every matrix moves by the same share of its size, down its own gradient.

        B's gradient is scaled to a root mean square of `lr`, so that one learning rate suits matrices and models of any
        scale. Adam, the choice of #77, gained less on golf3m (.0009 to .0017 against .0020 to .0025 BPB, ±.001): its
        first steps move rare pieces as far as any.
        """
        if not loss.requires_grad:
            raise ModelError("the model computes its logits without gradients (torch.no_grad?): --ttt cannot learn")
        ups = list(self._up.values())
        with torch.no_grad():
            for up, gradient in zip(ups, torch.autograd.grad(loss, ups, materialize_grads=True), strict=True):
                size = gradient.square().mean((-2, -1), keepdim=True).sqrt()
                up -= self._settings.lr * gradient / size.clamp_min(TINY)


def _down(weight: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """float32 [..., r, I] for a weight [..., O, I]: random, so large that B A is as large as B times the weight."""
    *bank, rows, cols = weight.shape
    rank = min(rank, rows, cols)
    size = weight.float().square().mean((-2, -1), keepdim=True).sqrt()
    down: Tensor = torch.randn(*bank, rank, cols, generator=generator).to(weight.device) * size / rank**0.5
    return down
