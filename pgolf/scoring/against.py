"""Changed models against the unquantized one on the same text: the KL and the rise of the loss, token by token, in one pass.

No byte is counted, so no tokenizer is needed. Logits of one batch of windows exist at a time, of the reference and of one changed
model; they are compared in parts, see `divergence.compared`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgolf.common.progress import Advance
from pgolf.data.shards import check_vocabulary
from pgolf.errors import ModelError
from pgolf.models.logits import Logits, device_of, undisturbed
from pgolf.scoring import bootstrap
from pgolf.scoring.bootstrap import Bootstrapped
from pgolf.scoring.bpb import nats_of
from pgolf.scoring.divergence import MOST_LOGITS, Compared, Divergence, compared, rare
from pgolf.scoring.windows import Window, batches_of_equal_shape, segments, sliding_windows

FEWEST_DOCUMENTS = 20  # that are units of the bootstrap; with fewer, windows are
BATCH = 32  # windows at a time, at most


@dataclass(frozen=True)
class Figures:
    """Of every target [N]: kl, before and after float32 in nats, same bool; see `divergence.Compared`. cuts: where units begin;
    unit: what they are."""

    kl: NDArray[np.float32]
    same: NDArray[np.bool_]
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    cuts: NDArray[np.int64]
    unit: str

    @property
    def counts(self) -> NDArray[np.int64]:
        """Tokens of every unit."""
        return np.diff(np.append(self.cuts, len(self.kl)))

    def sums(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Of values [N], by unit."""
        made: NDArray[np.float64] = np.add.reduceat(values, self.cuts, dtype=np.float64)
        return made

    def divergence(self) -> Divergence:
        """The figures in one; standard errors over units."""
        rises = self.after.astype(np.float64) - self.before
        return Divergence(
            tokens=len(self.kl),
            kl=float(self.kl.mean(dtype=np.float64)),
            kl_error=bootstrap.standard_error(self.sums(self.kl), self.counts) or 0.0,
            kl_rare=rare(torch.from_numpy(self.kl)),
            same_top=float(self.same.mean()),
            loss=float(self.before.mean(dtype=np.float64)),
            rise=float(rises.mean()),
            rise_error=bootstrap.standard_error(self.sums(rises), self.counts) or 0.0,
        )


def difference(first: Figures, second: Figures) -> Bootstrapped:
    """KL of `second` less that of `first`, over the same text, paired over its units."""
    return bootstrap.difference(first.sums(first.kl), second.sums(second.kl), first.counts)


def figures(
    reference: Logits,
    changed: Sequence[Logits],
    tokens: NDArray[np.integer],
    *,
    seq_len: int,
    stride: int | None = None,
    starts: NDArray[np.integer],
    within_documents: bool = False,
    progress: Advance | None = None,
) -> list[Figures]:
    """The figures of each changed model over `tokens` [N + 1], in windows as `bpb.score_windows` reads them.

    starts: positions of document starts, for the units; within_documents: no context crosses them. Raises DataError, and
    ModelError for logits that are not finite or are of another vocabulary.
    """
    total, done = len(tokens) - 1, 0
    windows = sliding_windows(total, seq_len, stride or seq_len, starts if within_documents else None)
    cuts, unit = _units(total, starts, windows)
    columns = [_Columns(total) for _ in changed]
    together = nn.ModuleList([logits.model for logits in (reference, *changed)])
    with undisturbed(together, gradients=False):
        width = _one_vocabulary(reference, changed)
        check_vocabulary(tokens, width)
        for batch in batches_of_equal_shape(windows, max(1, min(BATCH, MOST_LOGITS // (width * windows[0].shape[0])))):
            for place, found in zip(columns, _compared(reference, changed, tokens, batch), strict=True):
                place.take(batch, found)
            done += sum(window.stop - window.scored for window in batch)
            if progress is not None:
                progress(done, total)
    return [Figures(place.kl, place.same, place.before, place.after, cuts, unit) for place in columns]


class _Columns:
    """The figures [N] of one changed model, filled window by window."""

    def __init__(self, total: int) -> None:
        self.kl, self.before, self.after = (np.empty(total, np.float32) for _ in range(3))
        self.same = np.empty(total, np.bool_)

    def take(self, batch: Sequence[Window], found: Compared) -> None:
        for name, rows in found._asdict().items():
            for window, row in zip(batch, rows.cpu().numpy(), strict=True):
                getattr(self, name)[window.scored : window.stop] = row


class Beside:
    """Losses of a changed model, for `bpb.score_windows`, which also compares it with its reference on the first targets.

    tokens: at least so many are compared, in whole batches; all of them where there are fewer.
    """

    def __init__(self, reference: Logits, changed: Logits, tokens: int) -> None:
        self._reference, self._changed, self._left = reference, changed, tokens
        self._found: list[Compared] = []

    def __call__(self, ids: Tensor, skip: int) -> Tensor:
        logits = self._changed(ids[:, :-1])
        if self._left > 0:
            reference = self._reference(ids[:, :-1])[:, skip:]
            self._found.append(compared(reference, logits[:, skip:], ids[:, 1 + skip :]))
            self._left -= self._found[-1].kl.numel()
        return nats_of(logits, ids, skip)

    def figures(self) -> Figures:
        """Of what was compared so far; units are windows."""
        kl, same, before, after = (
            torch.cat([part.flatten() for part in parts]).cpu().numpy() for parts in zip(*self._found, strict=True)
        )
        lengths = [part.kl.shape[1] for part in self._found for _ in part.kl]
        return Figures(kl, same, before, after, np.cumsum([0, *lengths[:-1]]), "windows")


def _compared(
    reference: Logits, changed: Sequence[Logits], tokens: NDArray[np.integer], batch: Sequence[Window]
) -> list[Compared]:
    _, skip = batch[0].shape
    rows = np.stack([tokens[window.start : window.stop + 1] for window in batch]).astype(np.int64)
    ids = torch.from_numpy(rows)
    before, targets = _run(reference, ids)[:, skip:], ids[:, 1 + skip :]
    made = [compared(before, _run(logits, ids)[:, skip:], targets) for logits in changed]
    if not all(bool(found.kl.isfinite().all() & found.after.isfinite().all()) for found in made):
        first, last = min(window.start for window in batch), max(window.stop for window in batch)
        raise ModelError(f"logits of one of the models are not finite between tokens {first} and {last}")
    return made


def _run(logits: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    assert isinstance(logits, Logits)
    return logits(ids[:, :-1].to(device_of(logits.model)))


def _one_vocabulary(reference: Logits, changed: Sequence[Logits]) -> int:
    one = torch.zeros(1, 2, dtype=torch.int64)
    widths = [_run(logits, one).shape[-1] for logits in (reference, *changed)]
    if len(set(widths)) > 1:
        raise ModelError(f"models of {' and '.join(map(str, widths))} tokens have no KL between them: is it one model?")
    return widths[0]


def _units(total: int, starts: NDArray[np.integer], windows: Sequence[Window]) -> tuple[NDArray[np.int64], str]:
    documents = [first for first, _ in segments(total, starts)]
    if len(documents) >= FEWEST_DOCUMENTS:
        return np.array(documents, np.int64), "documents"
    return np.array(sorted(window.scored for window in windows), np.int64), "windows"
