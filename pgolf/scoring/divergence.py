"""How far a changed model's predictions are from the unquantized one's: the unit in which every quantizer is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RARE = 0.99  # the quantile of the tokens' KL that is told beside its mean
MOST_LOGITS = 1 << 24  # float32 at a time; each step holds about six tensors of this size

Predict = Callable[[Tensor], Tensor]
"""Token ids int64 [B, T] → logits [B, T, V]."""


@dataclass(frozen=True)
class Divergence:
    """Over `tokens` predictions, in nats per token. kl: mean KL(unquantized ‖ changed), and its standard error over
    sequences; kl_rare: its 99th percentile over tokens; same_top: the share of tokens whose likeliest next is the same.

    loss: the unquantized model's mean loss on the text's own next tokens; rise: what the change adds to it.
    """

    tokens: int
    kl: float
    kl_error: float
    kl_rare: float
    same_top: float
    loss: float
    rise: float


def divergence(reference: Predict, changed: Predict, ids: Tensor) -> Divergence:
    """Compare two models on ids int64 [N, T], a few sequences at a time. The last position of each has KL but no loss."""
    kl, alike, losses, rises = [], [], [], []
    with torch.no_grad():
        for part in in_parts(ids, reference(ids[:1]).shape[-1]):
            p, q = (model(part).float().log_softmax(-1) for model in (reference, changed))
            kl.append((p.exp() * (p - q)).sum(-1))
            alike.append(p.argmax(-1) == q.argmax(-1))
            before, after = (-x[:, :-1].gather(-1, part[:, 1:, None].to(x.device)).squeeze(-1) for x in (p, q))
            losses.append(before)
            rises.append(after - before)
    nats = torch.cat(kl).double().cpu()
    each = nats.mean(1)
    error = float(each.std()) / len(each) ** 0.5 if len(each) > 1 else 0.0
    return Divergence(
        tokens=nats.numel(),
        kl=float(nats.mean()),
        kl_error=error,
        kl_rare=float(_quantile(nats.flatten(), RARE)),
        same_top=float(torch.cat(alike).double().mean()),
        loss=_mean(losses),
        rise=_mean(rises),
    )


def in_parts(ids: Tensor, vocabulary: int) -> Sequence[Tensor]:
    """ids [N, T] cut into few enough sequences at a time for MOST_LOGITS logits."""
    return torch.split(ids, max(1, MOST_LOGITS // (vocabulary * ids.shape[1])))


def _quantile(values: Tensor, share: float) -> Tensor:
    return values.sort().values[min(int(share * len(values)), len(values) - 1)]  # torch.quantile ends at 2^24 values


def _mean(parts: list[Tensor]) -> float:
    return float(torch.cat(parts).double().mean()) if sum(part.numel() for part in parts) else 0.0
