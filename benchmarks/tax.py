"""What packing costs golf3m: the contest's packer, `auto` in as many bytes, and `auto` at other sizes, over calibration seeds.

    python benchmarks/tax.py [--seeds 3] [--calib-tokens 65536] [--max-tokens N] [--score NAME=FILE.pgolf] [--out RESULT.json]

On golf3m of ../shared/data, or on what --ckpt names. All packers get the same curvature, another one for each seed. The result
is written after every point, and points that it holds are not made again. --score: an artifact that is there already
(closed_loop.py --keep makes tuned ones), as one more point, which has no seed.

What will surprise you: the contest's error may point down the loss's slope by chance, which its rise then understates;
the KL (heldout.py) shows what was lost of the model.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
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
from pgolf.quant.curvature.store import Curvature
from pgolf.sweep.comparison import bytes_at

SHARES = {
    HOME_K: (1.0,),
    20.0: (1.0, 2 / 3),
}  # SDClip's k of the contest's packer -> parts of its bytes that `auto` gets
BITS = (
    2.0,
    2.25,
    2.5,
    2.75,
    3.2,
    4.0,
)  # of `auto` beside them, a weight, everything counted, with the first seed's curvature


def points(bench: HeldOut, seed: int, rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and arguments of `pack`. rows: of this seed, the contest's before those in its bytes."""
    for k, shares in SHARES.items():
        yield f"contest k={k:g}", contest(k)
        (theirs,) = (row["bytes"] for row in rows if row["name"] == f"contest k={k:g}")
        yield from ((f"auto {share:.3g} of k={k:g}", {"budget": int(share * theirs)}) for share in shares)
    for bits in BITS if seed == 0 else ():
        yield f"auto {bits:g} bits", {"budget": int(bits * bench.weights / 8)}


def point(bench: HeldOut, curvature: Curvature, how: dict[str, Any]) -> dict[str, Any]:
    """Bytes, KL and rise of one pack. The model has its own weights."""
    made = packing.pack(bench.source, None, curvature=curvature, **how)
    return scored(bench, made.data) | {"predicted": made.loss_rise}


def scored(bench: HeldOut, data: bytes) -> dict[str, Any]:
    """What an artifact loses of the model."""
    kl, rise = bench.score(dense.tensors_of(artifact.decode(data)[0]))
    found = {"bytes": len(data), "bits": 8 * len(data) / bench.weights, "kl": kl, "rise": rise}
    return found | {"bpb_rise": rise * bench.bits_of_a_nat}


def mean(rows: list[dict[str, Any]], name: str, what: str) -> float:
    """Over seeds."""
    return statistics.fmean(row[what] for row in rows if row["name"] == name)


def read(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios of means over seeds at equal bytes, and the bytes at an equal rise, by the first seed."""
    first = {row["name"]: row for row in rows if row.get("seed") == 0}
    curve = sorted((row["bytes"], row["rise"]) for name, row in first.items() if name.startswith("auto"))
    found = {}
    for k in SHARES:
        theirs, same = f"contest k={k:g}", f"auto 1 of k={k:g}"
        line = {what: mean(rows, same, what) / mean(rows, theirs, what) for what in ("kl", "rise")}
        size = bytes_at(curve, first[theirs]["rise"])
        found[f"k={k:g}"] = line | {"bytes_at_equal_rise": size and round(size.value)}
    return found


def table(found: dict[str, Any]) -> list[str]:
    """README's: means over seeds, of artifacts as long as the contest's, and as good."""
    rows, against = found["rows"], found["against_contest"]

    def line(label: str, name: str, note: str = "") -> str:
        size, bits, rise = (mean(rows, name, what) for what in ("bytes", "bits", "bpb_rise"))
        cost = f"{rise:.5f}".removeprefix("0")
        return f"| {label} | {size:,.0f} B | {bits:.2f} | {f'**{cost}** ({note})' if note else cost} |"

    home, far = (f"k={k:g}" for k in SHARES)
    (first,) = (row for row in rows if row["name"] == f"contest {home}" and row["seed"] == 0)
    size = against[home]["bytes_at_equal_rise"]
    part, bits, rise = size / first["bytes"], 8 * size / found["weights"], f"{first['bpb_rise']:.5f}".removeprefix("0")
    near, less = (f"{against[k]['rise']:.2f}x the tax, {against[k]['kl']:.2f}x in KL" for k in (home, far))
    lines = [
        "| packer | artifact | bits/weight | BPB rise |",
        "|---|---|---|---|",
        line(f"contest: full-Hessian GPTQ, SDClip int6 {home}, int8 embedding, brotli-11", f"contest {home}"),
        line("**pgolf, same bytes**", f"auto 1 of {home}", near),
        f"| **pgolf, same BPB** (interpolated, one calibration) | **{size:,.0f} B** ({part:.2f}x) | {bits:.2f} | {rise} |",
        line(f"contest, {far}", f"contest {far}"),
        line("**pgolf, same bytes**", f"auto 1 of {far}", less),
        line("**pgolf, two thirds of the bytes**", f"auto 0.667 of {far}"),
    ]
    return lines


def prices(found: dict[str, Any]) -> list[str]:
    """docs/SIZE.md's: what bits cost, and what 1% more weights in the same bytes must be worth between two lines."""
    lines = ["| packer | bits a weight | BPB rise | BPB for 1% more weights |", "|---|---|---|---|"]
    for kind, called in (("contest", "contest"), ("auto", "pgolf")):
        names = {row["name"] for row in found["rows"] if "seed" in row and row["name"].startswith(kind)}
        points = sorted(
            ((mean(found["rows"], name, "bits"), mean(found["rows"], name, "bpb_rise")) for name in names), reverse=True
        )
        above = None
        for bits, rise in points:
            price = above and 0.01 * (rise - above[1]) / math.log(above[0] / bits)
            told = f"{price:.5f}".removeprefix("0") if price else ""
            lines.append(
                f"| {called} | {bits:.2f} | {f'{rise:.4f}'.removeprefix('0')} | {told} |".replace("|  |", "| |")
            )
            above = bits, rise
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.set_defaults(max_tokens=443_092)  # all of golf3m's
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--calib-tokens", type=int, default=65536)
    parser.add_argument("--out", type=Path, default=RESULTS / "tax_golf3m.json")
    parser.add_argument("--score", action="append", default=[], help="NAME=FILE.pgolf")
    args = parser.parse_args()
    bench = HeldOut(args)
    rows: list[dict[str, Any]] = json.loads(args.out.read_text())["rows"] if args.out.is_file() else []
    facts = {"checkpoint": args.ckpt.name, "weights": bench.weights, "calibration_tokens": args.calib_tokens}
    facts |= {"tokens_scored": bench.ids.numel(), "bpb_before": bench.nats_before() * bench.bits_of_a_nat}
    for seed in range(args.seeds):
        curvature: Curvature | None = None
        mine = [row for row in rows if row.get("seed") == seed]
        for name, how in points(bench, seed, mine):
            if any(row["name"] == name for row in mine):
                continue
            bench.restore()
            curvature = curvature or calibrate(
                bench.model, bench.training_text(args.calib_tokens, seed), plain=True, seed=seed
            )
            mine.append({"seed": seed, "name": name} | point(bench, curvature, how))
            rows.append(mine[-1])
            print(rows[-1], flush=True)
            report.write_json(args.out, machine() | facts | {"rows": rows})
    for name, _, file in (each.partition("=") for each in args.score):
        rows = [row for row in rows if row["name"] != name] + [{"name": name} | scored(bench, Path(file).read_bytes())]
    facts["against_contest"] = read(rows)
    report.write_json(args.out, machine() | facts | {"rows": rows})
    print("\n".join([*table(facts | {"rows": rows}), "", *prices(facts | {"rows": rows})]))


if __name__ == "__main__":
    main()
