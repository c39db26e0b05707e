"""Bytes against bits per byte on one checkpoint, in one run: the contest's packer, and ours step by step.

    python benchmarks/frontier.py                              golf3m of ../shared/data, every validation token
    python benchmarks/frontier.py --ckpt C --model F.py:NAME --train T.bin --data V.bin --tokenizer T.model

Sizes are whole artifacts. Rises are interpolated in log rise over log bytes. Writes JSON and a plot beside it.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import GOLF3M, RESULTS, machine
from pgolf import checkpoint, pipeline, report, usermodel
from pgolf.packer import artifact, container
from pgolf.quant.calibrate import calibrate
from pgolf.quant.logits import logits_of
from pgolf.quant.settings import Settings
from pgolf.train import bpb, data

CONTEST_K = (9.0, 12.85, 16.0, 20.0, 30.0, 45.0)
BITS = (2.0, 2.5, 3.0, 3.5, 4.0)
BASE = Settings()
LADDER: dict[str, Settings] = {
    "scalar, columns only": replace(BASE, trellis=0, two_sided=False, unbias=0.0),
    "+ levels half unbiased": replace(BASE, trellis=0, two_sided=False),
    "+ feedback on both sides": replace(BASE, trellis=0),
    "+ 8-state trellis (default)": BASE,
    "32-state trellis": replace(BASE, trellis=32),
    "256-state trellis": replace(BASE, trellis=256),
}
RECODED = "contest codes, our coder"
DEFAULT = "+ 8-state trellis (default)"


class Bench:
    """The checkpoint, its curvature and its score, held once for all points."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.source = checkpoint.read(args.ckpt)
        state, config = self.source.state_dict(), self.source.config
        model = usermodel.load(args.model, state) if args.model else usermodel.from_config(config or {}, state)
        self.model = model.to(self.device)
        self.tokens = np.array(data.read_shard(args.data))
        self.counts = bpb.stream_bytes(self.tokens, bpb.token_bytes(args.tokenizer))
        self.seq_len, self.max_tokens = args.seq_len, args.max_tokens
        began = time.perf_counter()
        sampler = data.WindowSampler([data.read_shard(args.train)], args.seq_len, args.calib_tokens // args.seq_len, 0)
        self.curvature = calibrate(self.model, list(sampler.batch(0)[:, :-1].to(self.device).split(1)))
        self.calibrate_seconds = time.perf_counter() - began
        self.before = self.score(state)

    def score(self, state: dict[str, torch.Tensor]) -> float:
        usermodel.load_state(self.model, state)
        result = bpb.evaluate(
            logits_of(self.model),
            self.tokens,
            self.counts,
            seq_len=self.seq_len,
            max_tokens=self.max_tokens,
            batch_size=64 if self.device == "cuda" else 8,
            device=self.device,
        )
        return result.bpb

    def point(self, name: str, **how: Any) -> dict[str, Any]:
        packed = pipeline.pack(self.source, None, curvature=self.curvature, **how)
        began = time.perf_counter()
        state = pipeline.dense(artifact.decode(packed.data)[0])
        loaded = time.perf_counter() - began
        score = self.score(state)
        row = {
            "name": name,
            "bytes": len(packed.data),
            "bits_per_weight": packed.bits_per_weight,
            "predicted_rise_nats": packed.loss_rise,
            "bpb": score,
            "rise": score - self.before,
            "pack_seconds": packed.seconds,
            "load_seconds": loaded,
        }
        print(f"{name:34} {row['bytes']:>11,} B  {row['bits_per_weight']:.3f} b/w  +{row['rise']:.5f} BPB  "
              f"{row['pack_seconds']:.0f} s", flush=True)  # fmt: skip
        if how.get("coder") == "brotli" and shutil.which("lrzip"):
            return row | {"lrzip_bytes": lrzip_size(packed.data)}
        return row


def lrzip_size(data: bytes) -> int:
    """Bytes of a brotli artifact with its codes recoded by `lrzip -z` (ZPAQ), as the record entries do."""
    from pgolf.packer import general

    sections = container.parse(data).stored
    codes = [s for n, s in sections.items() if n.startswith("codes.")]
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "codes"
        raw.write_bytes(b"".join(general.decompress(s) for s in codes))
        subprocess.run(["lrzip", "-z", "-L9", "-q", str(raw)], check=True, capture_output=True)
        return len(data) - sum(len(s.data) for s in codes) + (Path(folder) / "codes.lrz").stat().st_size


def interpolate(points: list[dict[str, Any]], x: str, y: str, at: float) -> float | None:
    """y at x = `at`, linear in logarithms between neighbours; None outside the measured range."""
    known = sorted((p[x], p[y]) for p in points if p[y] > 0 and p[x] > 0)
    for (x0, y0), (x1, y1) in pairwise(known):
        if x0 <= at <= x1:
            share = math.log(at / x0) / math.log(x1 / x0) if x1 > x0 else 0.0
            return math.exp(math.log(y0) + share * math.log(y1 / y0))
    return None


def compare(points: list[dict[str, Any]], size: str = "bytes") -> list[dict[str, Any]]:
    """For each contest point: our bytes at its BPB and our rise at its bytes, as ratios, for every variant."""
    rows = []
    for ref in (p for p in points if p["name"] == "contest"):
        for name in [RECODED, *LADDER]:
            mine = [p for p in points if p["name"] == name]
            same_bpb = interpolate(mine, "rise", "bytes", ref["rise"])
            same_bytes = interpolate(mine, "bytes", "rise", ref[size])
            rows.append(
                {
                    "contest_bits": ref["bits_per_weight"],
                    "against": size,
                    "variant": name,
                    "bytes_ratio_at_equal_bpb": same_bpb and same_bpb / ref[size],
                    "rise_ratio_at_equal_bytes": same_bytes and same_bytes / ref["rise"],
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, default=GOLF3M / "golf3m" / "ckpt.pt")
    parser.add_argument("--model", default=f"{GOLF3M / 'golf3m' / 'model.py'}:GPT")
    parser.add_argument("--train", type=Path, default=GOLF3M / "text_train_000000.bin")
    parser.add_argument("--data", type=Path, default=GOLF3M / "text_val_000000.bin")
    parser.add_argument("--tokenizer", type=Path, default=GOLF3M / "tokenizers" / "text_1024_bpe.model")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--calib-tokens", type=int, default=65536)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--bits", type=float, nargs="*", default=BITS)
    parser.add_argument(
        "--contest-k", type=float, nargs="*", default=CONTEST_K, help="SDClip's k of the contest's points"
    )
    parser.add_argument("--variants", nargs="*", default=[RECODED, *LADDER])
    parser.add_argument(
        "--budgets", type=int, nargs="*", default=[], help="more budgets in bytes for the default method"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "frontier_golf3m.json")
    args = parser.parse_args()
    if not args.ckpt.is_file():
        sys.exit(f"{args.ckpt} is not there: name a checkpoint with --ckpt")
    bench = Bench(args)
    weights = sum(t.numel() for t in bench.source.tensors.values())
    print(
        f"{weights:,} weights, {bench.before:.5f} BPB before, calibrated in {bench.calibrate_seconds:.1f} s", flush=True
    )
    points = []
    for k in args.contest_k:
        rules = [f"*=int6,k={k}", f"*emb*=int8,k={k * 20 / 12.85:.4g}"]
        points.append(bench.point("contest", method="gptq", rules=rules, coder="brotli"))
        if RECODED in args.variants:
            points.append(bench.point(RECODED, method="gptq", rules=rules))
    for name in (n for n in args.variants if n != RECODED):
        budgets = [int(weights * bits / 8) for bits in args.bits] + (args.budgets if name == DEFAULT else [])
        points += [bench.point(name, method="auto", settings=LADDER[name], budget=b) for b in budgets]
    comparison = compare(points)
    if all("lrzip_bytes" in p for p in points if p["name"] == "contest"):
        comparison += compare(points, "lrzip_bytes")
    result = machine() | {
        "checkpoint": args.ckpt.name,
        "weights": weights,
        "bpb_before": bench.before,
        "tokens_scored": args.max_tokens or len(bench.tokens) - 1,
        "calibration_tokens": args.calib_tokens,
        "calibrate_seconds": bench.calibrate_seconds,
        "points": points,
        "comparison": comparison,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report.write_json(args.out, result)
    shown = [p for p in points if p["name"] in {"contest", DEFAULT, RECODED}]
    report.plot_points(shown, args.out.with_suffix(".png"), title=f"{weights:,} weights", reference=bench.before)
    for row in comparison:
        if row["variant"] == DEFAULT:
            print(row)


if __name__ == "__main__":
    main()
