"""A model at hand: the module whose weights are packed, and text to try them on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgolf.errors import UsageError

HELD = 8192  # tokens held back, where the text has eight times as many
HELD_SHARE = 8


@dataclass(frozen=True)
class Live:
    """model: holds the weights that are packed. held: int64 [M, T] token ids on which its artifact is measured.

    text: int64 [N, T] to tune on, none of it in `held`; None where there is only enough to measure. what: names the text,
    for people. logits: as for `calibrate`.
    """

    model: nn.Module
    held: Tensor
    text: Tensor | None = None
    what: str = "the text given"
    logits: Callable[..., Any] | str | None = None

    def __post_init__(self) -> None:
        for ids in (self.held, *([] if self.text is None else [self.text])):
            _refuse_other_than_ids(ids)


def live_of(model: Any, text: Tensor | Live | None) -> Live | None:
    """What `pack(model, text=text)` has at hand: the last sequences are held back, never tuned on. Raises UsageError."""
    if text is None or isinstance(text, Live):
        return text
    if not isinstance(model, nn.Module):
        raise UsageError("text= needs the module to run it: give pack a module, or text=Live(module, ...)")
    rest, held = split(text)
    return Live(model, held, rest if len(rest) else None)


def split(text: Tensor) -> tuple[Tensor, Tensor]:
    """(sequences to learn from, sequences held back): the last eighth of text [N, T], at most about HELD tokens."""
    _refuse_other_than_ids(text)
    rows = max(1, min(HELD // text.shape[1], len(text) // HELD_SHARE))
    return text[:-rows], text[-rows:]


def _refuse_other_than_ids(ids: object) -> None:
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 2 or 0 in ids.shape:
        raise UsageError("text to measure or tune on must be int64 token ids [sequences, tokens]")
