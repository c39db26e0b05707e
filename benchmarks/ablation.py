"""What each step of `auto` is worth on a model: bits a weight that the default saves over itself with the step taken out.

    python benchmarks/ablation.py                              golf3m of ../shared/data
    python benchmarks/ablation.py --ckpt C [--model F.py:NAME] --train T.bin --data V.bin --out R.json

What will surprise you:
* Variants are compared by their KL divergence from the unquantized model on held-out text (heldout.py).
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import RESULTS, machine
from benchmarks.heldout import HeldOut, add_options
from pgolf import report
from pgolf.fitting import packing
from pgolf.fitting.baselines import contest
from pgolf.loading import dense
from pgolf.packer.format import artifact
from pgolf.quant.curvature.collect import calibrate
from pgolf.quant.curvature.store import Curvature, MatrixCurvature
from pgolf.quant.settings import Settings

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
NEXT_STEP = 1.25  # the default's second step over its first


@dataclass(frozen=True)
class Unweighted:
    """A curvature whose factors are E[x xᵀ] and E[g gᵀ]."""

    whole: Curvature

    def get(self, name: str) -> list[MatrixCurvature | None] | None:
        return self.whole.get(name, weighted=False)


class Bench(HeldOut):
    """Held-out text with the curvature for all variants and a row for each."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        text = self.training_text(args.calib_tokens, args.seed)
        self.curvature = calibrate(self.model, text, plain=True, seed=args.seed)

    def point(self, name: str, curvature: Any = None, **how: Any) -> dict[str, Any]:
        packed = packing.pack(self.source, None, curvature=curvature or self.curvature, **how)
        kl, rise = self.score(dense.tensors_of(artifact.decode(packed.data)[0]))
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
    add_options(parser)
    parser.add_argument("--calib-tokens", type=int, default=65536)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=float, nargs="*", default=[0.93], help="1 is about 3 bits a weight")
    parser.add_argument("--out", type=Path, default=RESULTS / "ablation_golf3m.json")
    args = parser.parse_args()
    bench = Bench(args)
    weights = bench.weights
    rows = [bench.point("contest, k=12.85", **contest())]
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
