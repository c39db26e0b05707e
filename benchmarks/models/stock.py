"""A language model of PyTorch's own layers, as a tutorial writes it: plain PyTorch, nothing of pgolf."""

import torch
from torch import Tensor, nn


class Stock(nn.Module):
    """Three `nn.TransformerEncoderLayer`s of width 256 under a causal mask, learned positions, a head of its own."""

    def __init__(self, vocab: int = 1024, dim: int = 256, layers: int = 3, context: int = 1024) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocab, dim), nn.Embedding(context, dim)
        layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim, vocab, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids int64 [B, T] -> logits [B, T, V]."""
        T = ids.size(1)
        mask = nn.Transformer.generate_square_subsequent_mask(T)
        x = self.token(ids) + self.position(torch.arange(T))
        return self.head(self.encoder(x, mask=mask, is_causal=True))
