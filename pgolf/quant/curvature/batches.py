"""Token ids out of whatever a training loop calls a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.errors import CurvatureError

PASS_TOKENS = 4096  # at most, in a pass
PASS_BYTES = 1 << 29  # of logits in a pass
LOGIT_BYTES = 32  # of a token and a piece of the vocabulary: logits, what makes them, and their gradients
NAMES = ("input_ids", "inputs", "ids", "idx", "tokens", "token_ids", "x")


def rows_of_a_pass(ids: Tensor, vocabulary: int) -> Sequence[Tensor]:
    """The rows of ids [B, T] so few at a time that a pass over them, forward and backward, takes bounded memory."""
    most = min(PASS_TOKENS, PASS_BYTES // (LOGIT_BYTES * vocabulary))
    return torch.split(ids, max(1, most // ids.shape[1])) if ids.dim() == 2 else [ids]


def batches_of(batches: Iterable[Any], tokens: int | None) -> Iterator[Tensor]:
    """int64 ids [B, T] of every batch, cut so that they hold at most `tokens` tokens.

    batches: one tensor [sequences, T], or what a DataLoader gives: tensors, (inputs, targets), dicts with `input_ids` and
    perhaps an `attention_mask`, lists of examples, numpy arrays. Raises CurvatureError for what holds no token ids.
    """
    if isinstance(batches, Tensor) and batches.dim() == 2:
        batches = torch.split(batches, max(1, PASS_TOKENS // max(batches.shape[1], 1)))
    left = tokens
    for batch in batches:
        for found in _ids_in(batch):
            if found.numel() == 0:
                continue
            ids = _cut(found[None] if found.dim() == 1 else found, left)
            if ids.numel() == 0:
                return
            yield ids.long() if not ids.is_floating_point() and ids.dtype != torch.bool else ids
            left = None if left is None else left - ids.numel()


def _ids_in(batch: Any) -> list[Tensor]:
    """The ids of one batch; several where its rows differ in length."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, np.ndarray):
        return [torch.from_numpy(batch.astype(np.int64) if batch.dtype.kind == "u" else batch)]
    if isinstance(batch, Mapping):
        name = next((name for name in NAMES if name in batch), None)
        if name is None:
            raise CurvatureError(f"a batch is a dict without input_ids; it has {', '.join(map(str, batch))}")
        return _unpadded(_ids_in(batch[name])[0], batch.get("attention_mask"))
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch):
        return _in_sequence(batch)
    if isinstance(getattr(batch, "input_ids", None), Tensor):
        return [batch.input_ids]
    raise CurvatureError(f"a batch must hold int64 token ids [B, T], not {type(batch).__name__}")


def _in_sequence(batch: Sequence[Any]) -> list[Tensor]:
    """(inputs, targets): the inputs. Examples, each with its ids: each by itself. Plain numbers, or rows of them."""
    if all(isinstance(member, int) for member in batch):
        return [torch.tensor(batch)]
    if all(isinstance(member, Mapping) for member in batch):
        return [ids for member in batch for ids in _ids_in(member)]
    if all(isinstance(member, Sequence) for member in batch):
        return [ids for member in batch for ids in _in_sequence(member)]
    return _ids_in(batch[0])


def _unpadded(ids: Tensor, mask: Any) -> list[Tensor]:
    """The rows without their padding, each by itself, where a mask [B, T] says that there is any."""
    if not isinstance(mask, Tensor) or mask.shape != ids.shape or bool(mask.bool().all()):
        return [ids]
    rows = zip(ids[None] if ids.dim() == 1 else ids, mask[None] if mask.dim() == 1 else mask, strict=True)
    return [row[there.bool()] for row, there in rows]


def _cut(ids: Tensor, left: int | None) -> Tensor:
    """Whole rows of ids [B, T], or the start of one, with at most `left` tokens."""
    if left is None or ids.dim() != 2 or ids.numel() <= left:
        return ids
    rows = left // ids.shape[1]
    return ids[:rows] if rows else ids[:1, :left]
