"""The quantization tax at equal bytes: `auto` in as many bytes as the contest's packer takes, over calibration seeds.

    python benchmarks/tax.py [--seeds 3] [--calib-tokens 65536] [--k 12.85] [--max-tokens N] [--out RESULT.json]

On golf3m of ../shared/data, or on what --ckpt names. Both packers get the same curvature, another one for each seed.

What will surprise you: the contest's error may point down the loss's slope by chance, which its rise then understates;
the KL (heldout.py) shows what was lost of the model.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import RESULTS, machine
from benchmarks.heldout import HeldOut, add_options
from pgolf import report
from pgolf.fitting import packing
from pgolf.fitting.baselines import HOME_K, contest
from pgolf.loading import dense
from pgolf.packer.format import artifact
from pgolf.quant.curvature.collect import calibrate


def row(bench: HeldOut, k: float, tokens: int, seed: int) -> dict[str, Any]:
    """Bytes, KL and rise of both packers with the curvature of one calibration."""
    bench.restore()
    curvature = calibrate(bench.model, bench.training_text(tokens, seed), plain=True, seed=seed)
    out: dict[str, Any] = {"seed": seed}
    for name in ("contest", "auto"):
        how: dict[str, Any] = contest(k) if name == "contest" else {"budget": out["contest"]["bytes"]}
        made = packing.pack(bench.source, None, curvature=curvature, **how)
        kl, rise = bench.score(dense.tensors_of(artifact.decode(made.data)[0]))
        out[name] = {"bytes": len(made.data), "kl": kl, "rise": rise, "predicted": made.loss_rise}
    return out


def ratio(rows: list[dict[str, Any]], what: str) -> float:
    """Of the means over seeds, `auto` over the contest's."""
    ours, theirs = (statistics.fmean(r[name][what] for r in rows) for name in ("auto", "contest"))
    return ours / theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--calib-tokens", type=int, default=65536)
    parser.add_argument("--k", type=float, default=HOME_K, help="SDClip's clip of the contest's packer")
    parser.add_argument("--out", type=Path, default=RESULTS / "tax_golf3m.json")
    args = parser.parse_args()
    bench = HeldOut(args)
    rows = []
    for seed in range(args.seeds):
        rows.append(row(bench, args.k, args.calib_tokens, seed))
        print(rows[-1], flush=True)
        facts = {"checkpoint": str(args.ckpt), "k": args.k, "calibration_tokens": args.calib_tokens}
        facts |= {"tokens_scored": bench.ids.numel(), "rows": rows}
        report.write_json(args.out, machine() | facts | {what: ratio(rows, what) for what in ("kl", "rise")})
    print(f"auto / contest at equal bytes: KL {ratio(rows, 'kl'):.3f}, rise {ratio(rows, 'rise'):.3f}")


if __name__ == "__main__":
    main()
