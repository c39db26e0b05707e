"""Bits per byte: the loss of a model over a token stream, in windows, and the figures made of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pgolf.common import ranks
from pgolf.common.progress import Advance
from pgolf.data.shards import check_vocabulary
from pgolf.errors import DataError, ModelError
from pgolf.models.logits import Logits, device_of
from pgolf.models.products import by_onednn
from pgolf.scoring.overlap import fetched, ids_of, one_behind
from pgolf.scoring.windows import Window, batches_of_equal_shape, sliding_windows

Losses = Callable[[Tensor, int], Tensor]  # ids int64 [B, T + 1], targets skipped -> nats float32 [B, T - skipped]
MOST_LOSS = 700.0  # nats whose exponential a float still holds
LOSS_ROWS = 4096  # targets whose float32 log-softmax exists at once


@dataclass(frozen=True)
class EvalResult:
    """bpb: bits per byte; loss: nats per token; tokens and bytes: what was scored; seconds: wall clock."""

    bpb: float
    loss: float
    tokens: int
    bytes: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """How many tokens would be as hard to choose from evenly: infinite where a float cannot hold it."""
        return math.exp(self.loss) if self.loss < MOST_LOSS else math.inf

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def evaluate(
    logits_fn: Callable[[Tensor], Tensor],
    tokens: NDArray[np.integer],
    byte_counts: NDArray[np.integer],
    *,
    seq_len: int,
    stride: int | None = None,
    max_tokens: int | None = None,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    losses: Losses | None = None,
    progress: Advance | None = None,
) -> EvalResult:
    """Bits per byte of `tokens` [N]: every target once, with the windows of the contest; see `score_windows`.

    byte_counts: [N], see `pgolf.data.sidecar.byte_counts`; losses: as in `score_windows`. max_tokens: targets scored. Losses
    are summed in float64.
    """
    total = num_targets(tokens, byte_counts, max_tokens)
    began = time.perf_counter()
    nats = score_windows(
        logits_fn,
        tokens[: total + 1],
        seq_len=seq_len,
        stride=stride,
        batch_size=batch_size,
        device=device,
        losses=losses,
        progress=progress,
    )
    return result_of(nats, byte_counts, time.perf_counter() - began)


def score_windows(
    logits_fn: Callable[[Tensor], Tensor],
    tokens: NDArray[np.integer],
    *,
    seq_len: int,
    stride: int | None = None,
    starts: NDArray[np.integer] | None = None,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    losses: Losses | None = None,
    progress: Advance | None = None,
    shared: bool = False,
) -> NDArray[np.float32]:
    """float32 [N - 1]: nats of every target of `tokens` [N], each scored once.

    logits_fn: int64 [B, T] -> logits [B, T, V]; a module, a method of one or `logits_of` one runs in eval mode.
    seq_len: longest context. stride: windows start every `stride` tokens, the first is scored whole, each later one on
    its last `stride` targets; None: disjoint windows. starts: where windows begin anew, a document's first tokens, so
    that no context crosses from one to the next; None: one stream. device: where ids are put; None: the module's,
    the CPU where no module is known.
    losses: computes the losses in place of logits_fn, which then only says how large the vocabulary is; None: from logits.
    progress: called with (scored, total) after every batch. shared: every rank of a job calls this and runs a part of
    the batches; all get one rank's nats, to the bit.
    DataError, UsageError, or ModelError for logits that are not finite.
    """
    total, done = num_targets(tokens), 0
    windows = sliding_windows(total, seq_len, stride or seq_len, starts)
    nats, (rank, size) = np.zeros(total, np.float32), (ranks.rank(), ranks.size()) if shared else (0, 1)
    losses = losses or partial(_losses, logits_fn)
    model = _module_behind(logits_fn)
    place = torch.device(device or ("cpu" if model is None else device_of(model)))
    with torch.no_grad(), by_onednn(place), _in_eval_mode(model):
        vocab_size = logits_fn(torch.zeros(1, min(seq_len, total), dtype=torch.int64, device=place)).size(-1)
        check_vocabulary(tokens, vocab_size)
        launched = (
            (batch, fetched(losses(ids_of(tokens, batch, place), batch[0].shape[1])))
            for batch in islice(batches_of_equal_shape(windows, batch_size), rank, None, size)
        )
        for batch, read in one_behind(launched):
            for window, row in zip(batch, _finite(read(), batch), strict=True):
                nats[window.scored : window.stop] = row
            done += sum(window.stop - window.scored for window in batch)
            if progress is not None:
                progress(min(done * size, total), total)
    return ranks.total(nats) if shared else nats


def result_of(nats: NDArray[np.floating], byte_counts: NDArray[np.integer], seconds: float) -> EvalResult:
    """The figures of scored targets `nats` [N], byte_counts [N + 1 or more]. DataError where no byte is counted."""
    total, loss = len(nats), float(nats.sum(dtype=np.float64))
    num_bytes = int(byte_counts[1 : total + 1].sum(dtype=np.int64))
    if num_bytes == 0:
        raise DataError("the byte counts of the scored tokens sum to 0; they belong to another tokenizer or shard")
    return EvalResult(loss / math.log(2) / num_bytes, loss / total, total, num_bytes, seconds)


def num_targets(
    tokens: NDArray[np.integer], byte_counts: NDArray[np.integer] | None = None, max_tokens: int | None = None
) -> int:
    """How many targets of `tokens` are scored: a stream's first token is none, so neither its loss nor its bytes count.

    max_tokens: at most so many. Raises DataError for none, or counts of another number of tokens.
    """
    if byte_counts is not None and len(tokens) != len(byte_counts):
        raise DataError(f"{len(byte_counts)} byte counts for {len(tokens)} tokens")
    total = min(len(tokens) - 1, len(tokens) if max_tokens is None else max_tokens)
    if total < 1:
        wanted = "" if max_tokens is None else f", at most {max_tokens} wanted"
        raise DataError(f"nothing to score: {len(tokens)} tokens{wanted}")
    return total


def _losses(logits_fn: Callable[[Tensor], Tensor], ids: Tensor, skip: int) -> Tensor:
    """See `Losses`."""
    return nats_of(logits_fn(ids[:, :-1]), ids, skip)


def nats_of(logits: Tensor, ids: Tensor, skip: int) -> Tensor:
    """float32 [B, T - skip] of logits [B, T, V] for ids int64 [B, T + 1], the first `skip` targets left out."""
    logits, targets = logits[:, skip:].flatten(0, 1), ids[:, 1 + skip :]
    parts = zip(torch.split(logits, LOSS_ROWS), torch.split(targets.flatten(), LOSS_ROWS), strict=True)
    nats = torch.cat([F.cross_entropy(some.float(), wanted, reduction="none") for some, wanted in parts])
    return nats.view(targets.shape)


def _finite(nats: NDArray[np.float32], batch: list[Window]) -> NDArray[np.float32]:
    """nats of the scored targets of windows, if they are numbers. Raises ModelError."""
    if not np.isfinite(nats).all():
        first, last = min(window.start for window in batch), max(window.stop for window in batch)
        raise ModelError(f"the model's logits are not finite between tokens {first} and {last}")
    return nats


def _module_behind(logits_fn: Callable[[Tensor], Tensor]) -> nn.Module | None:
    """The module whose logits these are: a module, `Logits` of one, or a method of one; None for any other function."""
    owner = logits_fn.model if isinstance(logits_fn, Logits) else getattr(logits_fn, "__self__", logits_fn)
    return owner if isinstance(owner, nn.Module) else None


@contextmanager
def _in_eval_mode(module: nn.Module | None) -> Iterator[None]:
    """Inside, the module is in eval mode; afterwards every part of it is in the mode that it had."""
    modes = [] if module is None else [(part, part.training) for part in module.modules()]
    try:
        if module is not None:
            module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training
