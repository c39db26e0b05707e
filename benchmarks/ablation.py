"""What each step of `auto` is worth on a model: bits a weight that the default saves over itself with the step taken out.

    python benchmarks/ablation.py                              golf3m of ../shared/data
    python benchmarks/ablation.py --ckpt C [--model F.py:NAME] --train T.bin --data V.bin --out R.json

What will surprise you:
* Variants are compared by their KL divergence from the unquantized model on held-out text, nats per token: the rise of
  the loss itself scatters ten times as much, because it also has a part that is linear in the error.
* One pack a variant, at the step given. The default is packed at two steps; the slope of its log KL over its bytes then
  tells what a variant's KL is worth in bytes. Whole artifacts are counted.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import GOLF3M, RESULTS, machine
from pgolf import checkpoint, pipeline, report, usermodel
from pgolf.packer import artifact
from pgolf.quant.calibrate import calibrate
from pgolf.quant.curvature import Curvature, MatrixCurvature
from pgolf.quant.logits import logits_of
from pgolf.quant.settings import Settings
from pgolf.train import data

BASE = Settings()
VARIANTS: dict[str, dict[str, Any]] = {
    "no trellis": {"trellis": 0},
    "no feedback between rows": {"two_sided": False},
    "levels of least squared error": {"unbias": 0.0},
    "levels without bias": {"unbias": 1.0},
    "damping a tenth": {"damp_inputs": BASE.damp_inputs / 10, "damp_outputs": BASE.damp_outputs / 10},
    "32 states": {"trellis": 32},
}
UNWEIGHTED = "x and g taken as independent"
CONTEST: dict[str, Any] = {"method": "gptq", "rules": ["*=int6,k=12.85", "*emb*=int8,k=20"], "coder": "brotli"}
NEXT_STEP = 1.25  # the default's second step over its first


@dataclass(frozen=True)
class Unweighted:
    """A curvature whose factors are E[x xᵀ] and E[g gᵀ]."""

    whole: Curvature

    def get(self, name: str) -> list[MatrixCurvature | None] | None:
        return self.whole.get(name, weighted=False)


class Bench:
    """The model, its curvature and what it says of the held-out tokens, held once for all variants."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.source = checkpoint.read(args.ckpt)
        state, config = self.source.state_dict(), self.source.config
        self.model = usermodel.load(args.model, state) if args.model else usermodel.from_config(config or {}, state)
        self.model.eval()
        shards = [data.read_shard(args.train)]
        batch = data.WindowSampler(shards, args.seq_len, args.calib_tokens // args.seq_len, args.seed).batch(0)
        self.curvature = calibrate(self.model, batch[:, :-1], plain=True, seed=args.seed)
        held_out = torch.from_numpy(data.read_shard(args.data)[: args.max_tokens + 1].astype("int64"))
        count = (len(held_out) - 1) // args.seq_len * args.seq_len
        self.ids, self.targets = (held_out[i : i + count].view(-1, args.seq_len) for i in (0, 1))
        self.before = [self.log_p(i).half() for i in range(0, len(self.ids), 8)]

    @torch.no_grad()
    def log_p(self, start: int) -> Tensor:
        """Log-probabilities [8, T, V] of the model as it is now, from sequence `start` on."""
        return logits_of(self.model)(self.ids[start : start + 8]).float().log_softmax(-1)

    def score(self, state: dict[str, Tensor]) -> tuple[float, float]:
        """(KL from the unquantized model, rise of the loss), nats per token."""
        usermodel.load_state(self.model, state)
        kl = rise = 0.0
        for i, half in enumerate(self.before):
            p, q, wanted = half.float(), self.log_p(8 * i), self.targets[8 * i : 8 * i + 8, :, None]
            kl += float((p.exp() * (p - q)).sum())
            rise += float((p.gather(-1, wanted) - q.gather(-1, wanted)).sum())
        return kl / self.ids.numel(), rise / self.ids.numel()

    def point(self, name: str, curvature: Any = None, **how: Any) -> dict[str, Any]:
        packed = pipeline.pack(self.source, None, curvature=curvature or self.curvature, **how)
        kl, rise = self.score(pipeline.dense(artifact.decode(packed.data)[0]))
        row = {"name": name, "bytes": len(packed.data), "bits_per_weight": packed.bits_per_weight}
        row |= {"kl": kl, "rise": rise, "predicted": packed.loss_rise, "pack_seconds": packed.seconds}
        sys.stderr.write(f"{name:32} {row['bytes']:>10,} B  KL {1e3 * kl:.3f}  rise {1e3 * rise:.3f} mnats\n")
        return row


def bits_saved(default: dict[str, Any], finer: dict[str, Any], weights: int) -> Callable[[dict[str, Any]], float]:
    """A function: bits a weight by which `default` beats a point at equal KL, from the slope between two points."""
    nats_per_byte = math.log(default["kl"] / finer["kl"]) / (finer["bytes"] - default["bytes"])

    def saved(point: dict[str, Any]) -> float:
        in_bytes = math.log(point["kl"] / default["kl"]) / nats_per_byte + point["bytes"] - default["bytes"]
        return 8 * in_bytes / weights

    return saved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, default=GOLF3M / "golf3m" / "ckpt.pt")
    parser.add_argument("--model", help="FILE.py:NAME, unless the checkpoint says which of pgolf's it is")
    parser.add_argument("--train", type=Path, default=GOLF3M / "text_train_000000.bin")
    parser.add_argument("--data", type=Path, default=GOLF3M / "text_val_000000.bin")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--calib-tokens", type=int, default=65536)
    parser.add_argument("--max-tokens", type=int, default=65536)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=float, nargs="*", default=[0.93], help="1 is about 3 bits a weight")
    parser.add_argument("--out", type=Path, default=RESULTS / "ablation_golf3m.json")
    args = parser.parse_args()
    if args.ckpt == GOLF3M / "golf3m" / "ckpt.pt" and args.model is None:
        args.model = f"{GOLF3M / 'golf3m' / 'model.py'}:GPT"
    if not args.ckpt.is_file():
        sys.exit(f"{args.ckpt} is not there: name a checkpoint with --ckpt")
    bench = Bench(args)
    weights = sum(t.numel() for t in bench.source.tensors.values())
    rows = [bench.point("contest, k=12.85", **CONTEST)]
    for step in args.steps:
        at = replace(BASE, step=step)
        finer = bench.point("default, finer", settings=replace(at, step=step / NEXT_STEP))
        default = bench.point("default", settings=at)
        saved = bits_saved(default, finer, weights)
        points = [bench.point(name, settings=replace(at, **change)) for name, change in VARIANTS.items()]
        points.append(bench.point(UNWEIGHTED, Unweighted(bench.curvature), settings=at))
        rows += [p | {"step": step, "bits_saved": saved(p)} for p in (finer, default, *points)]
    facts = {"checkpoint": str(args.ckpt), "weights": weights, "tokens_scored": bench.ids.numel()}
    facts |= {"calibration_tokens": args.calib_tokens, "seq_len": args.seq_len, "seed": args.seed, "rows": rows}
    report.write_json(args.out, machine() | facts)
    for row in rows:
        print(f"{row['name']:32} {row['bits_per_weight']:.3f} bits  {row.get('bits_saved', math.nan):+.3f} bits saved")


if __name__ == "__main__":
    main()
