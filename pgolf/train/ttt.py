"""Score-first test-time training: every document teaches the model about itself, and is forgotten at its end.

A document is cut into chunks. A chunk is scored, and only then is one Adam step taken on its loss, in low-rank additions
B A to the model's matrices (LoRA, arXiv 2106.09685; one set a document as in openai/parameter-golf #77).

What will surprise you:
* The forward pass that scores a chunk is the one that is learned from: no second pass, and no way to learn first.
* Any matrix or bank of any model is adapted: the model runs with W + B A in the place of W. The model's own weights are
  never written, so they are bit-identical afterwards. Weights stored in bfloat16 round small additions away.
* Every document begins from the same A (drawn from an own generator) and B = 0, that is, from the model itself.
* The last chunk of a document teaches nobody, so it takes no step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from pgolf.errors import ModelError, UsageError
from pgolf.quant.logits import device_of, logits_of, original, undisturbed
from pgolf.train.bpb import Window, num_targets, segments
from pgolf.train.data import check_vocabulary

BETAS = (0.9, 0.95)  # openai/parameter-golf #77
SEED = 0  # of A


@dataclass(frozen=True)
class Settings:
    """rank: of the additions; chunk: targets between two steps; lr: Adam's learning rate."""

    rank: int = 8
    chunk: int = 256
    lr: float = 0.01

    def __post_init__(self) -> None:
        if self.rank < 1 or self.chunk < 1 or not self.lr > 0:
            raise UsageError("test-time training needs a rank and a chunk of at least 1 and a positive learning rate")


def score(
    model: nn.Module,
    tokens: NDArray[np.integer],
    starts: NDArray[np.integer],
    *,
    seq_len: int,
    settings: Settings = Settings(),
    logits: Callable[..., Any] | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """float32 [N - 1]: nats of every target of `tokens` [N], each scored before anything is learned from it.

    starts: positions of the documents' first tokens; neither context nor additions cross them. seq_len: longest
    context, the chunk included. logits: as in `pgolf.quant.logits.logits_of`. progress: called with (scored, total)
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


def chunk_windows(first: int, end: int, seq_len: int, chunk: int) -> Iterator[Window]:
    """Windows that score inputs [first, end) `chunk` at a time, each with the longest context there is.

    A document's last chunk has the context of a whole one: would it depend on where the document ends, the start of the
    next document were predicted by who knows that it comes, and the probabilities would not sum to 1.
    """
    for scored in range(first, end, chunk):
        yield Window(max(first, scored + chunk - seq_len), scored, min(scored + chunk, end))


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
    """The additions of one document and their optimizer."""

    def __init__(self, runner: _Runner, settings: Settings) -> None:
        self._runner, self._settings = runner, settings
        self._weights = {n: p.detach() for n, p in runner.named_parameters() if p.dim() in (2, 3) and p.numel()}
        if not self._weights:
            raise ModelError("the model has no matrix that test-time training could adapt")
        generator = torch.Generator().manual_seed(SEED)
        self._fresh = {name: _fresh(weight, settings.rank, generator) for name, weight in self._weights.items()}
        self.forget()

    def forget(self) -> None:
        """Start from the model itself."""
        self._factors = {
            name: (down.clone().requires_grad_(), up.clone().requires_grad_())
            for name, (down, up) in self._fresh.items()
        }
        parameters = [factor for pair in self._factors.values() for factor in pair]
        self._optimizer = torch.optim.Adam(parameters, lr=self._settings.lr, betas=BETAS)

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
        ids = ids.to(next(iter(self._weights.values())).device)
        logits = functional_call(self._runner, self._adapted(), (ids[None, :-1],))[0]
        skip = window.scored - window.start
        return F.cross_entropy(logits[skip:].float(), ids[skip + 1 :], reduction="none")

    def _adapted(self) -> dict[str, Tensor]:
        return {
            name: weight + (up @ down).to(weight.dtype)
            for name, weight in self._weights.items()
            for down, up in (self._factors[name],)
        }

    def _learn(self, loss: Tensor) -> None:
        if not loss.requires_grad:
            raise ModelError("the model computes its logits without gradients (torch.no_grad?): --ttt cannot learn")
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def _fresh(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(A [..., r, I] of variance 1/I, B [..., O, r] of zeros), float32, for a weight [..., O, I]."""
    *bank, rows, cols = weight.shape
    rank = min(rank, rows, cols)
    down = torch.randn(*bank, rank, cols, generator=generator) / cols**0.5
    return down.to(weight.device), torch.zeros(*bank, rows, rank, device=weight.device)
