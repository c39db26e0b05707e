"""What the softmax over a model's logits draws and how the gradients at it scatter, a few rows at a time.

Logits of a pass are the largest thing in memory: what is made of them here is never as large, but for one gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 1 << 20  # logits at a time: what is made of them stays in the cache


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Stretches of `rows` rows of `width` numbers that are worked on at a time."""
    step = max(1, BLOCK // max(width, 1))
    return (slice(start, start + step) for start in range(0, rows, step))


def drawn(p: Tensor, generator: torch.Generator) -> Tensor:
    """int64 [N]: one label of each row of probabilities p [N, V]; of a number a row, not one of each probability."""
    heap = p.cumsum(-1)
    chance = torch.rand(len(p), 1, generator=generator, dtype=torch.float32, device=p.device) * heap[:, -1:]
    return torch.searchsorted(heap, chance, right=True).squeeze(1).clamp_(max=p.shape[1] - 1)


def drawn_gradient(logits: Tensor, generator: torch.Generator) -> Tensor:
    """The gradient p − onehot(label) [N, V], in their dtype, of the summed cross-entropy of logits [N, V] against labels
    drawn from their own softmax."""
    out = torch.empty_like(logits)
    for part in blocks(*logits.shape):
        p = logits[part].float().softmax(-1)
        labels = drawn(p, generator)[:, None]
        out[part] = p.scatter_add_(1, labels, p.new_full(labels.shape, -1.0))
    return out


def all_finite(logits: Tensor) -> bool:
    """Whether rows [N, V] have a softmax: minus infinity may stand in them, but not alone."""
    return all(bool(logits[part].float().logsumexp(-1).isfinite().all()) for part in blocks(*logits.shape))
