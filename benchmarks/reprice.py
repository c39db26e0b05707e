"""What it buys to believe a measurement against gradients: models that do things to theirs, packed with and without.

    python benchmarks/reprice.py [--bits 3.0] [--out RESULT.json]

Random weights, so that it takes minutes and needs no data: a table, four layers and a head. plain: nothing is done; shrunk: the
table's gradient is a tenth of the true one (as GLM-130B trains); scaled: a function behind the last layer multiplies gradients by
a twentieth; straight through: matrices are rounded in the forward pass; experts: eight, of which a router takes one. KL on
text that neither calibration nor packing saw, beside what was foreseen of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pgolf
from benchmarks.common import RESULTS, machine
from pgolf import report
from pgolf.fitting import reprice
from pgolf.loading import dense
from pgolf.packer.format import artifact

VOCAB, DIM, LAYERS, EXPERTS, LENGTH = 256, 64, 4, 8, 64
KINDS = ("plain", "shrunk", "scaled", "straight through", "experts")


class Scaled(torch.autograd.Function):
    """A twentieth of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 0.05 * g


class Net(nn.Module):
    """A model of one of KINDS."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.table = nn.Embedding(VOCAB, DIM)
        self.up = nn.ParameterList(nn.Parameter(torch.empty(2 * DIM, DIM)) for _ in range(LAYERS))
        self.down = nn.ParameterList(nn.Parameter(torch.empty(DIM, 2 * DIM)) for _ in range(LAYERS))
        self.head = nn.Linear(DIM, VOCAB, bias=False)
        if kind == "experts":
            self.router = nn.ParameterList(nn.Parameter(torch.empty(EXPERTS, DIM)) for _ in range(LAYERS))
            self.experts = nn.ParameterList(nn.Parameter(torch.empty(EXPERTS, DIM, DIM)) for _ in range(LAYERS))
        for seed, p in enumerate(self.parameters()):
            g = torch.Generator().manual_seed(seed)
            p.data = torch.randn(p.shape, generator=g) * p.shape[-1] ** -0.5 * (1 if seed else 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        if self.kind == "shrunk":
            x = 0.1 * x + 0.9 * x.detach()
        for k in range(LAYERS):
            h = F.layer_norm(x, (DIM,))
            x = x + F.linear(torch.relu(F.linear(h, self._rounded(self.up[k]))), self.down[k])
            if self.kind == "experts":
                x = x + self._chosen(k, F.layer_norm(x, (DIM,)))
        if self.kind == "scaled":
            x = Scaled.apply(x)
        return self.head(F.layer_norm(x, (DIM,)))

    def _rounded(self, w: Tensor) -> Tensor:
        if self.kind != "straight through":
            return w
        step = w.abs().mean(1, keepdim=True) / 2
        return w + ((w / step).round() * step - w).detach()

    def _chosen(self, k: int, h: Tensor) -> Tensor:
        top, which = F.linear(h, self.router[k]).softmax(-1).max(-1)
        out = torch.zeros_like(h)
        for e in range(EXPERTS):
            mine = which == e
            out[mine] = 2 * (h[mine] @ self.experts[k][e]) * top[mine][:, None]
        return out


def text(seed: int) -> Tensor:
    return torch.randint(VOCAB, (128, LENGTH), generator=torch.Generator().manual_seed(seed))


def packed(kind: str, bits: float, rounds: int) -> dict[str, Any]:
    """KL, what was foreseen of it, and what the report says of prices."""
    model, reprice.ROUNDS = Net(kind).eval(), rounds
    curvature = pgolf.calibrate(model, text(98))
    room = round(bits * sum(p.numel() for p in model.parameters()) / 8)
    made = pgolf.pack(model, None, budget=room, curvature=curvature, text=text(99))
    with torch.no_grad():
        before = model(text(97)).log_softmax(-1)
        model.load_state_dict(dense.tensors_of(artifact.decode(made.data)[0]))
        kl = float((before.exp() * (before - model(text(97)).log_softmax(-1))).sum(-1).mean())
    told = [note for note in made.notes if "measured:" in note]
    return {"bytes": len(made.data), "kl": kl, "foreseen": made.loss_rise, "prices": told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "reprice.json")
    args = parser.parse_args()
    rows, rounds = [], reprice.ROUNDS
    for kind in KINDS:
        blind, measured = (packed(kind, args.bits, count) for count in (0, rounds))
        rows.append({"model": kind, "by gradients": blind, "measured": measured, "ratio": measured["kl"] / blind["kl"]})
        print(rows[-1], flush=True)
    report.write_json(args.out, machine() | {"bits": args.bits, "rows": rows})


if __name__ == "__main__":
    main()
