"""BigramHash: a table of features of hashed token pairs, so that the first layer knows its token and the one before.

Source: openai/parameter-golf #65, #135; Fibonacci hashing, Knuth, The Art of Computer Programming 3, 6.4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgolf.train.model.parts.linear import Linear

GOLDEN = 2654435769  # 2³² / golden ratio: a key's low bits reach all high bits of the product
WORD = 0xFFFFFFFF


class BigramHash(nn.Module):
    """A table of `buckets` rows of `width`, lifted to the model's width and weighed per channel.

    Rows start at zero: a pair that training never saw adds nothing.
    """

    def __init__(self, vocab_size: int, buckets: int, width: int, dim: int, bos_id: int | None) -> None:
        super().__init__()
        self.emb = nn.Embedding(buckets, width, _weight=torch.zeros(buckets, width))
        self.lift = Linear(width, dim)
        self.scale = nn.Parameter(torch.ones(dim))
        self.vocab_size, self.bos_id = vocab_size, bos_id

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """ids int64 [B, T] -> what the embedding gains: [B, T, dim] of `dtype`."""
        features: Tensor = self.lift(self.emb(self.buckets(ids)).to(dtype))
        return self.scale.to(dtype) * features

    def buckets(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> the row of each token's pair with the token before: int64 [B, T].

        The last row stands for no pair. The first token of a window or document gets it, so nothing crosses a document's
        start.
        """
        null = self.emb.num_embeddings - 1
        pair = ids[:, :-1] * self.vocab_size + ids[:, 1:]
        found = ((pair * GOLDEN) & WORD) * null >> 32
        if self.bos_id is not None:
            found = found.masked_fill(ids[:, 1:] == self.bos_id, null)
        return torch.cat([torch.full_like(ids[:, :1], null), found], dim=1)
