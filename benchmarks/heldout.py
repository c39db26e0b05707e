"""Held-out text, and what a model said of it before anything was done to its weights.

What will surprise you: `score` gives the KL divergence beside the rise of the loss. The rise has a part that is linear in
the error of the weights and scatters with it; on as much text the KL scatters a tenth as much.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.common import GOLF3M
from pgolf.data import shards
from pgolf.models import checkpoint, usermodel
from pgolf.models.logits import logits_of
from pgolf.train.model import rebuild

BATCH = 8  # windows
CHECKPOINT = GOLF3M / "golf3m" / "ckpt.pt"


class Loss(NamedTuple):
    """kl: from the untouched model; rise: of the loss. Nats per token."""

    kl: float
    rise: float


class HeldOut:
    """A checkpoint, its model, `seq_len`-token windows of training text to calibrate on and of held-out text to score."""

    def __init__(self, args: argparse.Namespace) -> None:
        """args: of `add_options`. The log-probabilities of all that is scored are kept, in half precision."""
        if not args.ckpt.is_file():
            raise SystemExit(f"{args.ckpt} is not there: name a checkpoint with --ckpt")
        golf3m = f"{GOLF3M / 'golf3m' / 'model.py'}:GPT" if args.ckpt == CHECKPOINT else None
        self.source = checkpoint.read(args.ckpt)
        state, model = self.source.state_dict(), args.model or golf3m
        self.model = usermodel.load(model, state) if model else rebuild.from_config(self.source.config or {}, state)
        self.model.eval()
        self.seq_len, self.train = args.seq_len, shards.read_shard(args.train)
        text = torch.from_numpy(shards.read_shard(args.data)[: args.max_tokens + 1].astype("int64"))
        count = (len(text) - 1) // args.seq_len * args.seq_len
        self.ids, self.targets = (text[i : i + count].view(-1, args.seq_len) for i in (0, 1))
        self.before = [self._log_p(i).half() for i in range(0, len(self.ids), BATCH)]

    @property
    def weights(self) -> int:
        """In all tensors of the checkpoint."""
        return sum(tensor.numel() for tensor in self.source.tensors.values())

    def training_text(self, tokens: int, seed: int) -> Tensor:
        """int64 [tokens // seq_len, seq_len] at random places."""
        return shards.WindowSampler([self.train], self.seq_len, tokens // self.seq_len, seed).batch(0)[:, :-1]

    def restore(self) -> None:
        """The checkpoint's weights, back in the model."""
        usermodel.load_state(self.model, self.source.state_dict())

    @torch.no_grad()
    def score(self, state: dict[str, Tensor]) -> Loss:
        """Of other weights, which stay in the model."""
        usermodel.load_state(self.model, state)
        kl = rise = 0.0
        for i, half in enumerate(self.before):
            p, q = half.float(), self._log_p(BATCH * i)
            wanted = self.targets[BATCH * i : BATCH * (i + 1), :, None]
            kl += float((p.exp() * (p - q)).sum())
            rise += float((p.gather(-1, wanted) - q.gather(-1, wanted)).sum())
        return Loss(kl / self.ids.numel(), rise / self.ids.numel())

    @torch.no_grad()
    def _log_p(self, start: int) -> Tensor:
        """Log-probabilities [BATCH, T, V] of the model as it is now, from window `start` on."""
        return logits_of(self.model)(self.ids[start : start + BATCH]).float().log_softmax(-1)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `HeldOut` reads."""
    parser.add_argument("--ckpt", type=Path, default=CHECKPOINT)
    parser.add_argument("--model", help="FILE.py:NAME, unless the checkpoint says which of pgolf's it is")
    parser.add_argument("--train", type=Path, default=GOLF3M / "text_train_000000.bin")
    parser.add_argument("--data", type=Path, default=GOLF3M / "text_val_000000.bin")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--max-tokens", type=int, default=65536, help="held-out tokens to score")
