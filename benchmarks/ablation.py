"""What each ingredient of `auto` is worth: bits a weight that the default saves at equal KL over itself with one taken away.

    python benchmarks/ablation.py                              golf3m of ../shared/data, three calibrations
    python benchmarks/ablation.py --ckpt C [--model F.py:NAME] --train T.bin --data V.bin --out R.json
    python benchmarks/ablation.py --tune 1.5M                  the closed loop too, in the default's bytes

Variants are compared by their KL divergence from the unquantized model on held-out text (heldout.py), each packed into the bytes
that the default takes at the step given. The default is packed at a finer step too; the slope of its log KL over its bytes then
tells what a variant's KL is worth in bytes. Whole artifacts are counted. The result is written after every pack; packs that it
holds are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.common import RESULTS, machine
from benchmarks.heldout import HeldOut, add_options
from pgolf import report
from pgolf.fitting import packing
from pgolf.fitting.baselines import HOME_K, contest
from pgolf.fitting.closed.tune import tokens_of
from pgolf.fitting.live import Live
from pgolf.loading import dense
from pgolf.packer.format import artifact
from pgolf.packer.plane import Scale
from pgolf.quant.curvature.collect import calibrate
from pgolf.quant.curvature.store import Curvature, MatrixCurvature
from pgolf.quant.methods import auto
from pgolf.quant.settings import Settings

BASE = Settings()
NEXT_STEP = 1.25  # the default's second step over its first
FINER, DEFAULT, TUNED = "default, finer", "default", "closed loop"
HELD_BACK = 8192  # tokens by which the closed loop chooses what it keeps


def one_row_price(known: MatrixCurvature) -> MatrixCurvature:
    """All rows cost alike, and nothing is fed between them: the loss is not asked which outputs matter."""
    if known.G is None:
        return known
    costs = known.G.diagonal() if known.G.dim() == 2 else known.G
    return replace(known, G=costs.mean().expand(len(costs)).clone())


def one_column_price(known: MatrixCurvature) -> MatrixCurvature:
    """All columns cost alike, and nothing is fed between them."""
    return replace(known, H=known.H.diagonal().mean() * torch.eye(len(known.H)))


def apart_columns(known: MatrixCurvature) -> MatrixCurvature:
    """Each column has its step, but errors of one are not fed to the next."""
    return replace(known, H=known.H.diagonal().diag())


@dataclass(frozen=True)
class Variant:
    """settings: changed ones; known: what becomes of each curvature; instead: functions of `auto` replaced while it packs."""

    settings: dict[str, Any] = field(default_factory=dict)
    known: Callable[[MatrixCurvature], MatrixCurvature] | None = None
    weighted: bool = True
    instead: dict[str, Callable[..., Any]] = field(default_factory=dict)


def finest_scale(wanted: np.ndarray, weights: int, finest: int) -> Scale:
    return Scale.nearest(wanted, finest)


def told_as_they_are(classes: np.ndarray, scale: Scale, weights: int) -> np.ndarray:
    return classes.astype(np.int32)


def one_class(classes: np.ndarray, scale: Scale, weights: int) -> np.ndarray:
    return np.full_like(classes, round(float(classes.mean())), dtype=np.int32)


VARIANTS = {
    "row prices and their feedback": Variant(known=one_row_price),
    "feedback between rows": Variant({"two_sided": False}),
    "column prices and their feedback": Variant(known=one_column_price),
    "feedback between columns": Variant(known=apart_columns),
    "all feedback": Variant({"two_sided": False}, known=apart_columns),
    "weighting by the other side": Variant(weighted=False),
    "spread classes (one a matrix)": Variant(instead={"fitting_classes": one_class}),
    "side information by length": Variant(
        instead={"fitting_scale": finest_scale, "fitting_classes": told_as_they_are, "drift": lambda *_: 1.0}
    ),
    "half-unbiased levels: least squares": Variant({"unbias": 0.0}),
    "half-unbiased levels: no bias": Variant({"unbias": 1.0}),
    "trellis (scalar)": Variant({"trellis": 0}),
    "32 states instead": Variant({"trellis": 32}),
    "256 states instead": Variant({"trellis": 256}),
}


class Changed:
    """A curvature as a variant sees it; all else is the whole one's."""

    def __init__(self, whole: Curvature, variant: Variant) -> None:
        self.whole, self.variant = whole, variant

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def get(self, name: str) -> list[MatrixCurvature | None] | None:
        found = self.whole.get(name, weighted=self.variant.weighted)
        change = self.variant.known
        if change is None or found is None:
            return found
        return [None if known is None else change(known) for known in found]

    def matrices(self, name: str) -> list[MatrixCurvature | None] | None:
        return Curvature.matrices(self, name)  # type: ignore[arg-type]


class Bench(HeldOut):
    """Held-out text, the curvature of one calibration at a time, and a row for each pack."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.args = args
        self.rows: list[dict[str, Any]] = json.loads(args.out.read_text())["rows"] if args.out.is_file() else []
        self._known: tuple[int, Curvature] | None = None

    def curvature(self, seed: int) -> Curvature:
        if self._known is None or self._known[0] != seed:
            self.restore()
            text = self.training_text(self.args.calib_tokens, seed)
            self._known = seed, calibrate(self.model, text, plain=True, seed=seed)
        return self._known[1]

    def found(self, name: str, seed: int) -> dict[str, Any] | None:
        return next((row for row in self.rows if (row["name"], row["seed"]) == (name, seed)), None)

    def point(self, name: str, seed: int, variant: Variant | None = None, **how: Any) -> dict[str, Any]:
        """A row: packed, scored and written, unless it is there."""
        if row := self.found(name, seed):
            return row
        curvature = self.curvature(seed)
        seen = curvature if variant is None else Changed(curvature, variant)
        with ExitStack() as stack:
            for function, other in (variant.instead if variant else {}).items():
                stack.enter_context(patch.object(auto, function, other))
            packed = packing.pack(self.source, None, curvature=seen, **how)
        kl, rise = self.score(dense.tensors_of(artifact.decode(packed.data)[0]))
        row = {"name": name, "seed": seed, "bytes": len(packed.data), "bits_per_weight": packed.bits_per_weight}
        row |= {"kl": kl, "rise": rise, "predicted": packed.loss_rise, "pack_seconds": packed.seconds}
        print(row, file=sys.stderr, flush=True)
        self.rows.append(row)
        self.write()
        return row

    def tuned(self, seed: int, tokens: int, budget: int) -> dict[str, Any]:
        """The closed loop at `budget`, on text of its own."""
        text = self.training_text(self.args.calib_tokens + tokens + HELD_BACK, seed)
        held, more = (count // self.seq_len for count in (HELD_BACK, HELD_BACK + self.args.calib_tokens))
        self.restore()  # what was scored last is in the model
        live = Live(self.model, text[:held], text[more:])
        return self.point(TUNED, seed, budget=budget, text=live, tune=tokens)

    def write(self) -> None:
        for seed in {row["seed"] for row in self.rows}:
            ends = self.found(DEFAULT, seed), self.found(FINER, seed)
            if all(ends):
                saved = bits_saved(*ends, self.weights)
                for row in self.rows:
                    if row["seed"] == seed:
                        row["bits_saved"] = saved(row)
        facts = {"checkpoint": self.args.ckpt.name, "weights": self.weights, "tokens_scored": self.ids.numel()}
        facts |= {"calibration_tokens": self.args.calib_tokens, "seq_len": self.seq_len, "step": self.args.step}
        report.write_json(self.args.out, machine() | facts | {"rows": self.rows})


def bits_saved(default: dict[str, Any], finer: dict[str, Any], weights: int) -> Callable[[dict[str, Any]], float]:
    """A function: bits a weight by which `default` beats a point at equal KL, from the slope between two points."""
    nats_per_byte = math.log(default["kl"] / finer["kl"]) / (finer["bytes"] - default["bytes"])

    def saved(point: dict[str, Any]) -> float:
        in_bytes = math.log(point["kl"] / default["kl"]) / nats_per_byte + point["bytes"] - default["bytes"]
        return 8 * in_bytes / weights

    return saved


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each variant: mean over calibrations, and their standard deviation where there are several."""
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        values = [row["bits_saved"] for row in rows if row["name"] == name and "bits_saved" in row]
        if values and name not in {DEFAULT, FINER}:
            scatter = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            lines.append(f"| {name} | {statistics.fmean(values):+.3f}{scatter} | {len(values)} |")
    return ["| without | bits a weight | calibrations |", "|---|---|---|", *lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.set_defaults(seq_len=512, max_tokens=32768)
    parser.add_argument("--calib-tokens", type=int, default=32768)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--step", type=float, default=0.93, help="1 is about 3 bits a weight")
    parser.add_argument("--tune", help="tokens of the closed loop, as 1.5M")
    parser.add_argument("--out", type=Path, default=RESULTS / "ablation_golf3m.json")
    args = parser.parse_args()
    bench = Bench(args)
    for seed in range(args.seeds):
        at = replace(BASE, step=args.step)
        default = bench.point(DEFAULT, seed, settings=at)
        bench.point(FINER, seed, settings=replace(at, step=args.step / NEXT_STEP))
        for name, variant in VARIANTS.items():
            bench.point(name, seed, variant, settings=replace(BASE, **variant.settings), budget=default["bytes"])
        bench.point(f"contest's packer, k={HOME_K}", seed, **contest())
        if args.tune:
            bench.tuned(seed, tokens_of(args.tune) or 0, default["bytes"])
    print("\n".join(table(bench.rows)))


if __name__ == "__main__":
    main()
