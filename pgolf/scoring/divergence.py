"""How far a changed model's predictions are from the unquantized one's: the unit in which every quantizer is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

RARE = 0.99  # the quantile of the tokens' KL that is told beside its mean
MOST_LOGITS = 1 << 24  # of each model at a time...
PART = 1 << 22  # ...of which so many are compared at once: float32, about six tensors of this size

Predict = Callable[[Tensor], Tensor]
"""Token ids int64 [B, T] → logits [B, T, V]."""


@dataclass(frozen=True)
class Divergence:
    """Over `tokens` predictions, in nats per token. kl: mean KL(unquantized ‖ changed), and its standard error over
    sequences; kl_rare: its 99th percentile over tokens; same_top: the share of tokens whose likeliest next is the same.

    loss: the unquantized model's mean loss on the text's own next tokens; rise: what the change adds to it, and its standard
    error over sequences, which is that of a paired difference.
    """

    tokens: int
    kl: float
    kl_error: float
    kl_rare: float
    same_top: float
    loss: float
    rise: float
    rise_error: float = 0.0


class Compared(NamedTuple):
    """Two models at the same positions, of one shape. kl: float32, nats; same: bool, whether the likeliest next is the same;
    before, after: float32, nats of the text's own next token under the unquantized and the changed model."""

    kl: Tensor
    same: Tensor
    before: Tensor
    after: Tensor


def compared(reference: Tensor, changed: Tensor, targets: Tensor) -> Compared:
    """Two models' logits [..., V] of any dtypes, and targets int64 [...] in range, compared in parts of PART logits."""
    rows = max(1, PART // reference.shape[-1])
    flat = (
        reference.flatten(0, -2),
        changed.flatten(0, -2).to(reference.device),
        targets.flatten().to(reference.device),
    )
    parts = [_compared(*part) for part in zip(*(torch.split(tensor, rows) for tensor in flat), strict=True)]
    return Compared(*(torch.cat(columns).view(targets.shape) for columns in zip(*parts, strict=True)))


def _compared(reference: Tensor, changed: Tensor, targets: Tensor) -> Compared:
    p, q = (logits.float().log_softmax(-1) for logits in (reference, changed))
    same = p.argmax(-1) == q.argmax(-1)
    before, after = (-x.gather(-1, targets[:, None]).squeeze(-1) for x in (p, q))
    share = p.exp()  # 0 where a logit is −∞: what cannot be costs nothing
    return Compared((share * (p - q).masked_fill_(share == 0, 0)).sum(-1), same, before, after)


def divergence(reference: Predict, changed: Predict, ids: Tensor) -> Divergence:
    """Compare two models on ids int64 [N, T], a few sequences at a time. The last position of each has KL but no loss."""
    found: list[Compared] = []
    with torch.no_grad():
        for part in in_parts(ids, reference(ids[:1]).shape[-1]):
            before = reference(part).clone()  # a model may write all its logits to one place
            found.append(compared(before, changed(part), part.roll(-1, 1)))
    kl, same, before, after = (torch.cat(columns).cpu() for columns in zip(*found, strict=True))
    nats, rises = kl.double(), (after - before)[:, :-1].double()
    return Divergence(
        tokens=nats.numel(),
        kl=float(nats.mean()),
        kl_error=_error(nats),
        kl_rare=rare(nats.flatten()),
        same_top=float(same.double().mean()),
        loss=float(before[:, :-1].double().mean()) if rises.numel() else 0.0,
        rise=float(rises.mean()) if rises.numel() else 0.0,
        rise_error=_error(rises) if rises.numel() else 0.0,
    )


def in_parts(ids: Tensor, vocabulary: int) -> Sequence[Tensor]:
    """ids [N, T] cut into few enough sequences at a time for MOST_LOGITS logits."""
    return torch.split(ids, max(1, MOST_LOGITS // (vocabulary * ids.shape[1])))


def rare(values: Tensor) -> float:
    """The quantile RARE of values [N]; torch.quantile ends at 2^24 of them."""
    return float(values.sort().values[min(int(RARE * len(values)), len(values) - 1)])


def _error(values: Tensor) -> float:
    """Standard error of the mean of values [N, T] over sequences."""
    each = values.mean(1)
    return float(each.std()) / len(each) ** 0.5 if len(each) > 1 else 0.0
