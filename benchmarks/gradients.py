"""What it costs to see only the gradients of a model's matrices: KL at equal bytes, against curvature of traced products.

    python benchmarks/gradients.py [--tokens 32768] [--seeds 1] [--bits 2.67] [--out RESULT.json]

On golf3m of ../shared/data, or on what --ckpt names. Every matrix is treated as one whose use is not followed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import RESULTS, machine
from benchmarks.heldout import HeldOut, add_options
from pgolf import report
from pgolf.fitting import packing
from pgolf.loading import dense
from pgolf.packer.format import artifact
from pgolf.quant.curvature.collect import calibrate
from pgolf.quant.curvature.store import Curvature


@contextmanager
def seeing(kind: str) -> Iterator[None]:
    """traced: as always; gradients: as if no use of any matrix could be followed."""
    if kind == "traced":
        yield
    else:
        with mock.patch.object(Curvature, "covered", return_value="untraced"):
            yield


def row(bench: HeldOut, kind: str, tokens: int, seed: int, budget: int) -> dict[str, Any]:
    """KL and rise of the loss of `auto` at a budget in bytes, by one kind of curvature."""
    bench.restore()
    began = time.perf_counter()
    with seeing(kind):
        curvature = calibrate(bench.model, bench.training_text(tokens, seed), seed=seed)
        seconds = time.perf_counter() - began
        made = packing.pack(bench.source, None, curvature=curvature, budget=budget)
    kl, rise = bench.score(dense.tensors_of(artifact.decode(made.data)[0]))
    facts = {"curvature": kind, "seed": seed, "tokens": tokens, "calibrate_seconds": seconds}
    return facts | {"bytes": len(made.data), "kl": kl, "rise": rise, "predicted": made.loss_rise}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.set_defaults(seq_len=512)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--bits", type=float, default=2.67)
    parser.add_argument("--out", type=Path, default=RESULTS / "gradients_golf3m.json")
    args = parser.parse_args()
    bench = HeldOut(args)
    budget = round(args.bits * bench.weights / 8)
    rows = []
    for seed in range(args.seeds):
        for kind in ("traced", "gradients"):
            rows.append(row(bench, kind, args.tokens, seed, budget))
            print(rows[-1], flush=True)
    report.write_json(args.out, machine() | {"checkpoint": args.ckpt.name, "bits": args.bits, "rows": rows})


if __name__ == "__main__":
    main()
