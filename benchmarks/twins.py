"""The same weights in other words, packed into equal bytes: how much more the odd wording loses than plain products.

    python benchmarks/twins.py [--bits 3.0] [--out RESULT.json]

Random weights, so that it takes minutes and needs no data: 24 residual layers of 64 wide and a head. heads: the matrix of every
layer as eight parameters 8x64 (192 together); gains: vectors behind every layer as one parameter [24, 64]; function: every
fourth product in an autograd.Function of its own; stock: three nn.TransformerEncoderLayer against the same written out.
Predicted over measured KL is given of each. KL is brought to the same bytes by the slope of the rate: a bit is a factor of four.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pgolf
from benchmarks.common import RESULTS, machine
from pgolf import report
from pgolf.loading import dense
from pgolf.packer.format import artifact

VOCAB, DIM, LAYERS, HEADS = 256, 64, 24, 8


class Own(torch.autograd.Function):
    """x Wᵀ as a fused kernel does it: nothing of it is seen from outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w, g.flatten(0, -2).T @ x.flatten(0, -2)


def seeded(*shape: int, seed: int, std: float = DIM**-0.5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * std


class Net(nn.Module):
    """Residual layers in some wording."""

    def __init__(self, wording: str) -> None:
        super().__init__()
        self.wording = wording
        self.table = nn.Parameter(seeded(VOCAB, DIM, seed=0, std=1.0))
        count = HEADS if wording == "heads" else 1
        whole = [seeded(DIM, DIM, seed=10 + k) for k in range(LAYERS)]
        self.layers = nn.ParameterList(nn.Parameter(part.clone()) for w in whole for part in w.chunk(count))
        gains = 0.5 + 0.2 * seeded(LAYERS, DIM, seed=1, std=1.0)
        if wording == "gains":
            self.gains = nn.Parameter(gains)
        elif wording == "gains apart":
            self.gains = nn.ParameterList(nn.Parameter(row.clone()) for row in gains)
        else:
            self.register_buffer("gains", gains, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = F.embedding(ids, self.table)
        count = len(self.layers) // LAYERS
        for k in range(LAYERS):
            parts = [self.layers[k * count + i] for i in range(count)]
            h = torch.tanh(x)
            y = torch.cat(
                [Own.apply(h, w) if self.wording == "function" and k % 4 == 0 else F.linear(h, w) for w in parts], -1
            )
            x = x + self.gains[k] * y
        return F.linear(x, self.table) / 8


class Stock(nn.Module):
    """Three encoder layers, as torch has them or written out."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.plain = plain
        self.table = nn.Parameter(seeded(VOCAB, DIM, seed=0, std=1.0))
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(DIM, 4, 128, batch_first=True) for _ in range(3))
        for k, p in enumerate(self.layers.parameters()):
            p.data.copy_(
                seeded(*p.shape, seed=100 + k, std=p.shape[-1] ** -0.5 if p.dim() > 1 else 0.3) + (p.dim() < 2)
            )

    def forward(self, ids: Tensor) -> Tensor:
        x = F.embedding(ids, self.table)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        for layer in self.layers:
            x = self._written_out(layer, x) if self.plain else layer(x, src_mask=mask)
        return F.linear(x, self.table) / 8

    def _written_out(self, m: Any, x: Tensor) -> Tensor:
        a = m.self_attn
        pairs = zip(a.in_proj_weight.chunk(3), a.in_proj_bias.chunk(3), strict=True)
        q, k, v = (F.linear(x, w, b).unflatten(-1, (4, -1)).transpose(1, 2) for w, b in pairs)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = m.norm1(x + F.linear(mixed, a.out_proj.weight, a.out_proj.bias))
        return m.norm2(x + m.linear2(F.relu(m.linear1(x))))


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "heads": (lambda: Net("heads"), lambda: Net("plain")),
    "gains": (lambda: Net("gains"), lambda: Net("gains apart")),
    "function": (lambda: Net("function"), lambda: Net("plain")),
    "stock": (lambda: Stock(False), lambda: Stock(True)),
}


@torch.no_grad()
def packed(model: nn.Module, bits: float) -> dict[str, float]:
    """Bytes, KL on other text, the KL at exactly the budget, and the predicted one."""
    model.eval()
    text, held = (torch.randint(0, VOCAB, (64, 128), generator=torch.Generator().manual_seed(s)) for s in (3, 9))
    with torch.enable_grad():
        curvature = pgolf.calibrate(model, text)
    before = model(held).log_softmax(-1)
    weights = sum(p.numel() for p in model.parameters())
    room = round(bits * weights / 8)
    made = pgolf.pack(model, None, budget=room, curvature=curvature)
    model.load_state_dict(dense.tensors_of(artifact.decode(made.data)[0]))
    kl = float((before.exp() * (before - model(held).log_softmax(-1))).sum(-1).mean())
    at_budget = kl * 4 ** (-8 * (room - len(made.data)) / weights)
    return {"bytes": len(made.data), "kl": kl, "kl_at_budget": at_budget, "predicted": made.loss_rise or 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "twins.json")
    args = parser.parse_args()
    rows = []
    for name, (odd, plain) in PAIRS.items():
        found, known = packed(odd(), args.bits), packed(plain(), args.bits)
        ratio = found["kl_at_budget"] / known["kl_at_budget"]
        rows.append(
            {
                "case": name,
                "odd": found,
                "plain": known,
                "ratio": ratio,
                "measured_over_predicted": found["kl"] / found["predicted"],
            }
        )
        print(rows[-1], flush=True)
        report.write_json(args.out, machine() | {"bits": args.bits, "rows": rows})


if __name__ == "__main__":
    main()
