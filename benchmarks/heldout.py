"""Held-out text, and what a model said of it before anything was done to its weights.

What will surprise you: `score` gives the KL divergence beside the rise of the loss. The rise has a part that is linear in
the error of the weights and scatters with it; on as much text the KL scatters a tenth as much.
"""

from __future__ import annotations

import argparse
import math
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.common import GOLF3M
from pgolf.data import shards, tokenizers
from pgolf.models import usermodel
from pgolf.models.logits import logits_of
from pgolf.models.products import by_onednn
from pgolf.train.model.rebuild import Maker

BATCH = 8  # windows
CHECKPOINT = GOLF3M / "golf3m" / "ckpt.pt"


class Loss(NamedTuple):
    """kl: from the untouched model; rise: of the loss. Nats per token."""

    kl: float
    rise: float


class Windows(NamedTuple):
    """Text in windows int64 [N, T], its next tokens, and the untouched model's log-probabilities, BATCH windows at a time in
    half precision."""

    ids: Tensor
    targets: Tensor
    before: list[Tensor]


class HeldOut:
    """A checkpoint, its model, `seq_len`-token windows of training text to calibrate on and of held-out text to score."""

    def __init__(self, args: argparse.Namespace) -> None:
        """args: of `add_options`."""
        if not args.ckpt.exists():
            raise SystemExit(f"{args.ckpt} is not there: name a checkpoint or a folder of transformers with --ckpt")
        golf3m = f"{GOLF3M / 'golf3m' / 'model.py'}:GPT" if args.ckpt == CHECKPOINT else None
        maker = Maker(args.model or golf3m)
        self.source = maker.read(args.ckpt)
        self.model = maker.build(self.source.state_dict(), self.source.config, args.ckpt).eval()
        self.seq_len, self.train = args.seq_len, shards.read_shard(args.train)
        text = torch.from_numpy(shards.read_shard(args.data)[: args.max_tokens + 1].astype("int64"))
        self.scored = self.windows(text)
        self.ids = self.scored.ids

    @property
    def weights(self) -> int:
        """In all tensors of the checkpoint."""
        return sum(tensor.numel() for tensor in self.source.tensors.values())

    def training_text(self, tokens: int, seed: int) -> Tensor:
        """int64 [tokens // seq_len, seq_len] at random places."""
        return shards.WindowSampler([self.train], self.seq_len, tokens // self.seq_len, seed).batch(0)[:, :-1]

    @cached_property
    def bits_of_a_nat(self) -> float:
        """What a nat a token of the scored text is in bits a byte."""
        table = tokenizers.token_bytes(GOLF3M / "tokenizers" / "text_1024_bpe.model")
        ids = self.scored.targets.flatten().numpy()
        return len(ids) / math.log(2) / int(tokenizers.stream_bytes(ids, table).sum(dtype="int64"))

    def nats_before(self) -> float:
        """Loss a token of the untouched model on the held-out text."""
        _, targets, before = self.scored
        picked = (p.float().gather(-1, t) for p, t in zip(before, targets[..., None].split(BATCH), strict=True))
        return -sum(float(each.sum(dtype=torch.float64)) for each in picked) / targets.numel()

    def restore(self) -> None:
        """The checkpoint's weights, back in the model."""
        usermodel.load_state(self.model, self.source.state_dict())

    def windows(self, text: Tensor) -> Windows:
        """Of text int64 [n], while the model has its own weights."""
        count = (len(text) - 1) // self.seq_len * self.seq_len
        ids, targets = (text[i : i + count].view(-1, self.seq_len) for i in (0, 1))
        return Windows(ids, targets, [self._log_p(part).half() for part in ids.split(BATCH)])

    @torch.no_grad()
    def score(self, state: dict[str, Tensor], on: Windows | None = None) -> Loss:
        """Of other weights, which stay in the model, on the held-out text or some other."""
        usermodel.load_state(self.model, state)
        ids, targets, before = on or self.scored
        kl = rise = 0.0
        for half, part, wanted in zip(before, ids.split(BATCH), targets[..., None].split(BATCH), strict=True):
            p, q = half.float(), self._log_p(part)
            kl += float((p.exp() * (p - q)).sum())
            rise += float((p.gather(-1, wanted) - q.gather(-1, wanted)).sum())
        return Loss(kl / ids.numel(), rise / ids.numel())

    @torch.no_grad()
    def _log_p(self, ids: Tensor) -> Tensor:
        """Log-probabilities [N, T, V] of the model as it is now."""
        with by_onednn(ids.device):
            return logits_of(self.model)(ids).float().log_softmax(-1)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `HeldOut` reads."""
    parser.add_argument("--ckpt", type=Path, default=CHECKPOINT)
    parser.add_argument("--model", help="FILE.py:NAME, unless the checkpoint says what it is")
    parser.add_argument("--train", type=Path, default=GOLF3M / "text_train_000000.bin")
    parser.add_argument("--data", type=Path, default=GOLF3M / "text_val_000000.bin")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--max-tokens", type=int, default=65536, help="held-out tokens to score")
