"""The contest's kind of stack, its odd parameters included, packed by `auto` in as many bytes as its own packer takes.

    python benchmarks/contest_stack.py [--minutes 15] [--bits 3.0 3.5] [--tokens 8192] [--label NAME] [--pgolf DIR]

Banks of weights, gates and skip weights used elementwise, a residual mix, the MLP in an autograd.Function of its own, layers
that run twice, a tied head: 3.4M weights, trained here once and kept in --cache. --pgolf measures another checkout on the same
weights; rows of one label replace those of the same label in the result.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
ELSEWHERE = sys.argv[sys.argv.index("--pgolf") + 1] if "--pgolf" in sys.argv else str(HERE)
sys.path[:0] = [ELSEWHERE, str(HERE)]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.common import RESULTS, machine  # noqa: E402

VOCAB, HEADS, LAYERS = 1024, 4, 6
ENCODER, DECODER = (0, 1, 2, 3), (2, 3, 4, 5)
LENGTH = 256


class SquaredMLP(torch.autograd.Function):
    """relu(x Uᵀ)² D with its gradient written out, as a fused kernel has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        h = (x @ up.T).relu()
        ctx.save_for_backward(x, up, down, h)
        return (h * h) @ down

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, up, down, h = ctx.saved_tensors
        inner = 2 * h * (g @ down.T)
        return inner @ up, inner.flatten(0, -2).T @ x.flatten(0, -2), (h * h).flatten(0, -2).T @ g.flatten(0, -2)


class Stack(nn.Module):
    """U-Net over a loop: layers 2 and 3 run twice, the second half takes what the first has left on a stack."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = 2 * dim
        self.dim = dim

        def normal(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape) * std)

        self.table = normal(VOCAB, dim, std=0.02)
        self.qkvo = normal(4 * LAYERS, dim, dim, std=dim**-0.5)
        self.up = normal(LAYERS, hidden, dim, std=dim**-0.5)
        self.down = normal(LAYERS, hidden, dim, std=0.2 * hidden**-0.5)
        self.gains = nn.Parameter(torch.full((LAYERS, 2, dim), 0.5))
        self.residual_mix = nn.Parameter(torch.stack([torch.ones(LAYERS, dim), torch.zeros(LAYERS, dim)], 1))
        self.skip_weights = nn.Parameter(torch.ones(len(DECODER) - 1, dim))
        self.skip_gates = nn.Parameter(torch.zeros(len(DECODER) - 1, dim))
        self.q_gain = nn.Parameter(torch.full((LAYERS, HEADS), 4.0))
        half = dim // HEADS // 2
        angle = torch.arange(2048)[:, None] / 10000 ** (torch.arange(half) / half)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = first = F.rms_norm(F.embedding(ids, self.table), (self.dim,))
        left = []
        for layer in ENCODER:
            x = self._layer(layer, x, first)
            left.append(x)
        for i, layer in enumerate(DECODER):
            if i:
                gate = torch.sigmoid(self.skip_gates[i - 1])
                x = gate * x + (1 - gate) * self.skip_weights[i - 1] * left[-1 - i]
            x = self._layer(layer, x, first)
        return 30 * torch.tanh(F.linear(F.rms_norm(x, (self.dim,)), self.table) / 30 * self.dim**0.5 / 4)

    def _layer(self, k: int, x: Tensor, first: Tensor) -> Tensor:
        x = self.residual_mix[k, 0] * x + self.residual_mix[k, 1] * first
        x = x + self.gains[k, 0] * self._attention(k, F.rms_norm(x, (self.dim,)))
        return x + self.gains[k, 1] * SquaredMLP.apply(F.rms_norm(x, (self.dim,)), self.up[k], self.down[k])

    def _attention(self, k: int, x: Tensor) -> Tensor:
        wq, wk, wv, wo = self.qkvo[4 * k : 4 * k + 4]
        q, key, v = (F.linear(x, w).unflatten(-1, (HEADS, -1)).transpose(1, 2) for w in (wq, wk, wv))
        q, key = (self._turned(F.rms_norm(t, (t.shape[-1],))) for t in (q, key))
        q = q * self.q_gain[k][:, None, None]
        mixed = F.scaled_dot_product_attention(q, key, v, is_causal=True, scale=q.shape[-1] ** -0.5)
        return F.linear(mixed.transpose(1, 2).flatten(2), wo)

    def _turned(self, t: Tensor) -> Tensor:
        a, b = t.chunk(2, -1)
        cos, sin = self.cos[: t.shape[2]], self.sin[: t.shape[2]]
        return torch.cat([a * cos + b * sin, b * cos - a * sin], -1)


def stack() -> Stack:
    """The model of 3.4M weights, for benchmarks that take a module's maker."""
    return Stack(256)


def trained(dim: int, batch: int, minutes: float, shard: Path, cache: Path) -> dict[str, Tensor]:
    """The weights after so many minutes of AdamW, from the cache where it has them."""
    if cache.is_file():
        return torch.load(cache, weights_only=True)
    from pgolf.data import shards

    torch.manual_seed(0)
    model, data = Stack(dim), shards.WindowSampler([shards.read_shard(shard)], LENGTH, batch, 0)
    groups = [
        {"params": [model.qkvo, model.up, model.down, model.table], "lr": 3e-3, "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.numel() < 10000], "lr": 1e-2, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    rates, began, step = [g["lr"] for g in groups], time.monotonic(), 0
    while (spent := (time.monotonic() - began) / (60 * minutes)) < 1:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min((step + 1) / 20, 1) * min(1, 1.05 - spent)
        ids = data.batch(step)
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            print(f"step {step}, {spent:.0%}: {float(loss.detach()):.4f}", flush=True)
    cache.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), cache)
    return model.state_dict()


class Scored:
    """Held-out text: KL in nats a token and the rise of the bits per byte."""

    def __init__(self, model: Stack, data: Path, tokenizer: Path, tokens: int) -> None:
        from pgolf.data import shards
        from pgolf.data.tokenizers import count_bytes, token_bytes

        text = torch.from_numpy(shards.read_shard(data)[: tokens + 1].astype("int64"))
        count = (len(text) - 1) // LENGTH * LENGTH
        self.ids, self.targets = (text[i : i + count].view(-1, LENGTH) for i in (0, 1))
        whole = text[: count + 1].numpy()
        self.bits = (
            count / math.log(2) / int(count_bytes(whole[1:], whole[:-1], token_bytes(tokenizer)).sum())
        )  # a nat in bits a byte
        self.model = model
        self.before = [self._log_p(ids) for ids in self.ids.split(8)]

    @torch.no_grad()
    def _log_p(self, ids: Tensor) -> Tensor:
        return self.model(ids).float().log_softmax(-1)

    def loss(self) -> float:
        """Of the untouched model, nats a token."""
        parts = zip(self.before, self.targets.split(8), strict=True)
        return sum(float(-p.gather(-1, t[..., None]).sum()) for p, t in parts) / self.ids.numel()

    def of(self, state: dict[str, Tensor]) -> dict[str, float]:
        self.model.load_state_dict(state)
        kl = rise = 0.0
        for p, ids, wanted in zip(self.before, self.ids.split(8), self.targets.split(8), strict=True):
            q = self._log_p(ids)
            kl += float((p.exp() * (p - q)).sum())
            rise += float((p - q).gather(-1, wanted[..., None]).sum())
        per_token = {"kl": kl / self.ids.numel(), "rise": rise / self.ids.numel()}
        return per_token | {"bpb_tax": per_token["rise"] * self.bits}


def contest_at(source: Any, curvature: Any, num_bytes: int) -> Any:
    """The contest's packer at the finest clip that fits so many bytes, a bit a weight for an octave of k."""
    from pgolf.fitting import packing
    from pgolf.fitting.baselines import HOME_K, contest

    k, best = HOME_K * 1.6, None
    for _ in range(6):
        made = packing.pack(source, None, curvature=curvature, **contest(k))
        if len(made.data) <= num_bytes and (best is None or len(made.data) > len(best.data)):
            best = made
        if 0 <= num_bytes - len(made.data) <= 0.002 * num_bytes:
            break
        k *= 2 ** (8 * (len(made.data) - 0.999 * num_bytes) / sum(t.numel() for t in source.values()))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--dim", type=int, default=256, help="256: 3.4M weights; a quarter of them with half as many")
    parser.add_argument("--batch", type=int, default=16, help="windows a training step")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--bits", type=float, nargs="+", default=[3.0, 3.5])
    parser.add_argument("--tokens", type=int, default=8192, help="of calibration text")
    parser.add_argument("--max-tokens", type=int, default=16384, help="held-out tokens to score")
    parser.add_argument("--shared", type=Path, default=shared)
    parser.add_argument("--cache", type=Path, default=HERE / ".scratch" / "contest_stack.pt")
    parser.add_argument("--label", default="this")
    parser.add_argument("--contest", action="store_true", help="the contest's packer too")
    parser.add_argument("--pgolf", help="another checkout to measure")
    parser.add_argument("--out", type=Path, default=RESULTS / "contest_stack.json")
    args = parser.parse_args()
    state = trained(args.dim, args.batch, args.minutes, args.shared / "text_train_000000.bin", args.cache)

    import pgolf
    from pgolf.data import shards
    from pgolf.fitting import packing
    from pgolf.loading import dense
    from pgolf.packer.format import artifact

    model = Stack(args.dim).eval()
    model.load_state_dict(state)
    scored = Scored(
        model, args.shared / "text_val_000000.bin", args.shared / "tokenizers/text_1024_bpe.model", args.max_tokens
    )
    weights = sum(t.numel() for t in state.values())
    sampler = shards.WindowSampler([shards.read_shard(args.shared / "text_train_000000.bin")], LENGTH, 16, 1)
    text = [sampler.batch(i)[:, :-1] for i in range(args.tokens // LENGTH // 16)]
    began = time.perf_counter()
    curvature = pgolf.calibrate(model, text, plain=args.contest)
    facts = {"label": args.label, "calibrate_seconds": time.perf_counter() - began}
    rows = (
        [r for r in json.loads(args.out.read_text())["rows"] if r["label"] != args.label] if args.out.is_file() else []
    )
    for bits in args.bits:
        room = round(bits * weights / 8)
        for name in ("auto", "contest") if args.contest else ("auto",):
            if name == "auto":
                made = packing.pack(state, None, curvature=curvature, budget=room)
            else:
                made = contest_at(state, curvature, room)
            odd = {r.name: [r.method, round(r.num_bytes), r.loss_rise] for r in made.rows if r.weights < 16384}
            told = {"packer": name, "bits": bits, "bytes": len(made.data), "predicted": made.loss_rise, "odd": odd}
            rows.append(facts | told | scored.of(dense.tensors_of(artifact.decode(made.data)[0])))
            print(rows[-1], flush=True)
            model.load_state_dict(state)
    before = {"weights": weights, "loss": scored.loss(), "bpb": scored.loss() * scored.bits}
    told = {
        "dim": args.dim,
        "training_minutes": args.minutes,
        "calibration_tokens": args.tokens,
        "tokens_scored": scored.ids.numel(),
    }
    args.out.write_text(json.dumps(machine() | before | told | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
