"""What calibration text is worth: real, self-generated and random tokens, for the contest's gptq and for auto.

    python benchmarks/calibration.py [--tokens 20480] [--seeds 1] [--max-tokens 65536] [--out RESULT.json]

On golf3m of ../shared/data, or on what --ckpt names. Each kind of text gets the same number of tokens.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import RESULTS, machine
from benchmarks.heldout import HeldOut, add_options
from pgolf import report
from pgolf.fitting import packing
from pgolf.fitting.baselines import contest
from pgolf.loading import dense
from pgolf.packer.format import artifact
from pgolf.quant.curvature import selftext
from pgolf.quant.curvature.collect import calibrate

KINDS = ("real", "self", "random")


def text(bench: HeldOut, kind: str, tokens: int, seed: int) -> torch.Tensor:
    """int64 [windows, length]; invented ones are one token shorter, because generation prefers odd numbers."""
    if kind == "real":
        return bench.training_text(tokens, seed)
    length = bench.seq_len - 1
    if kind == "self":
        return selftext.self_generate(bench.model, sequences=tokens // length, length=length, seed=seed)
    vocabulary = int(bench.ids.max()) + 1
    return selftext.random_tokens(vocabulary, sequences=tokens // length, length=length, seed=seed)


def row(bench: HeldOut, kind: str, tokens: int, seed: int) -> dict[str, Any]:
    """KL and rise of the loss of both packers with this text, and the seconds it took."""
    bench.restore()
    began = time.perf_counter()
    ids = text(bench, kind, tokens, seed)
    generated = time.perf_counter()
    curvature = calibrate(bench.model, ids, plain=True, seed=seed)
    out: dict[str, Any] = {"text": kind, "seed": seed, "tokens": ids.numel(), "generate_seconds": generated - began}
    out["calibrate_seconds"] = time.perf_counter() - generated
    auto = {"budget": 3 * bench.weights // 8}
    for name, how in (("contest_gptq", contest()), ("auto_3_bits", auto)):
        made = packing.pack(bench.source, None, curvature=curvature, **how)
        kl, rise = bench.score(dense.tensors_of(artifact.decode(made.data)[0]))
        out[name] = {"kl": kl, "rise": rise, "bytes": len(made.data), "predicted": made.loss_rise}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--tokens", type=int, default=20480)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "calibration_golf3m.json")
    args = parser.parse_args()
    bench = HeldOut(args)
    rows = []
    for seed in range(args.seeds):
        for kind in KINDS:
            rows.append(row(bench, kind, args.tokens, seed))
            print(rows[-1], flush=True)
            facts = {"checkpoint": str(args.ckpt), "tokens_scored": bench.ids.numel(), "rows": rows}
            report.write_json(args.out, machine() | facts)


if __name__ == "__main__":
    main()
