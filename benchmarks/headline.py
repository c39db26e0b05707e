"""What the whole headline command costs: seconds, processor seconds and memory of `pgolf pack` that writes its own text.

    python benchmarks/headline.py [--tree before=DIR] [--models contest,stock] [--tokens 32768] [--texts 3] [--out RESULT.json]

Each tree (this one, and any checkout named by --tree) runs `pgolf pack CKPT --model FILE:CLASS --budget SIZE` in a process
of its own, one after the other, on random weights in the shapes of `benchmarks/models`. --texts N also says what text
that golf3m of ../shared/data writes in pieces is worth: KL at equal bytes, N seeds. Results are added to those in RESULT.json.

What will surprise you: on a machine that others use too, wall seconds say little. Processor seconds of one thread (--threads 1)
say more, and the peak of memory is exact.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import RESULTS, machine

HERE = Path(__file__).resolve().parents[1]

MODELS = {  # name: file of benchmarks/models, class, budget
    "contest": ("contest", "GPT", "16MB"),
    "half": ("contest", "Half", "8MB"),
    "stock": ("stock", "Stock", "1MB"),
}
GOLF_BITS, TOKENS = 2.67, 32768
PIECES = ((1023, 1023), (511, 511), (255, 255), (255, 1020), (255, 510))  # tokens written, and read, at a time


def checkpoint(name: str, folder: Path) -> tuple[Path, str, int]:
    """A file of random weights of the model, how --model names it, and how many weights there are."""
    import torch

    from pgolf.models import usermodel

    file, kind, _ = MODELS[name]
    spec = f"{HERE / 'benchmarks' / 'models' / file}.py:{kind}"
    model, generator = usermodel.load(spec), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            rows, cols = parameter.shape
            spread = 0.3 * torch.randn(rows, 1, generator=generator) + 0.4 * torch.randn(1, cols, generator=generator)
            parameter.data = 0.7 * cols**-0.5 * spread.exp() * torch.randn(rows, cols, generator=generator)
    path = folder / f"{name}.pt"
    torch.save(model.state_dict(), path)
    return path, spec, sum(p.numel() for p in model.parameters())


def command(tree: Path, arguments: list[str], threads: int) -> dict[str, Any]:
    """Run `pgolf pack` of a tree in a process of its own; seconds, processor seconds, peak memory, and of its report."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)}
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        words = [sys.executable, "-m", "pgolf", "pack", *arguments, "--json", "--force"]
        process = subprocess.Popen(words, cwd=tree, env=environment, stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{tree}: pgolf pack ended with status {status}")
        out.seek(0)
        report = json.load(out)
    return {
        "seconds": time.perf_counter() - began,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_gib": used.ru_maxrss / 2**20,
        "packing_seconds": report["seconds"],
        "bytes": report["artifact_bytes"],
    }


def costs(trees: dict[str, Path], name: str, tokens: int, threads: int, folder: Path) -> list[dict[str, Any]]:
    """One row a tree: what it takes to pack the model without any text."""
    path, spec, weights = checkpoint(name, folder)
    arguments = [str(path), "--model", spec, "--budget", MODELS[name][2], "--tokens", str(tokens)]
    facts = {"model": name, "weights": weights, "tokens": tokens, "threads": threads}
    rows = []
    for tree, root in trees.items():
        rows.append(facts | {"tree": tree} | command(root, [*arguments, "-o", str(folder / "made.pgolf")], threads))
        print(rows[-1], flush=True)
    return rows


def texts(seeds: int) -> list[dict[str, Any]]:
    """What golf3m loses at equal bytes, scalar rounding, calibrated on text that it writes in pieces and reads in sequences."""
    from benchmarks.heldout import HeldOut, add_options
    from pgolf.fitting import packing
    from pgolf.loading import dense
    from pgolf.packer.format import artifact
    from pgolf.quant.curvature import selftext
    from pgolf.quant.curvature.collect import calibrate
    from pgolf.quant.settings import LOG_SCALE, Settings

    parser = argparse.ArgumentParser()
    add_options(parser)
    bench = HeldOut(parser.parse_args(["--seq-len", "512", "--max-tokens", "49152"]))
    how = {"budget": round(GOLF_BITS * bench.weights / 8), "settings": Settings(trellis=0, scale_per_octave=LOG_SCALE)}
    rows = []
    for seed in range(seeds):
        for piece, read in PIECES:
            bench.restore()
            began = time.process_time()
            ids = selftext.self_generate(bench.model, sequences=TOKENS // piece, length=piece, seed=seed).flatten()
            generated = time.process_time()
            curvature = calibrate(bench.model, ids[: len(ids) // read * read].view(-1, read), seed=seed)
            calibrated = time.process_time()
            made = packing.pack(bench.source, None, curvature=curvature, **how)
            kl, rise = bench.score(dense.tensors_of(artifact.decode(made.data)[0]))
            facts = {"piece": piece, "read": read, "seed": seed, "kl": kl, "rise": rise, "bytes": len(made.data)}
            facts |= {"generate_cpu": generated - began, "calibrate_cpu": calibrated - generated}
            rows.append(facts | {"predicted": made.loss_rise})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", action="append", default=[], metavar="NAME=DIR", help="another checkout, run first")
    parser.add_argument("--models", default="contest,stock", help=f"of {', '.join(MODELS)}; '' for none")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=0, metavar="SEEDS")
    parser.add_argument("--out", type=Path, default=RESULTS / "headline.json")
    args = parser.parse_args()
    trees = {name: Path(root).resolve() for name, _, root in (word.partition("=") for word in args.tree)} | {
        "now": HERE
    }
    found = json.loads(args.out.read_text()) if args.out.exists() else {"costs": [], "texts": []}
    with tempfile.TemporaryDirectory() as temporary:
        for name in filter(None, args.models.split(",")):
            found["costs"] += costs(trees, name, args.tokens, args.threads, Path(temporary))
        if args.texts:
            found["texts"] += texts(args.texts)
    from pgolf import report

    report.write_json(args.out, found | machine())


if __name__ == "__main__":
    main()
