"""A pack shared among 1, 2 and 4 ranks of one thread: seconds, processor seconds of the busiest rank, memory of the largest.

    python benchmarks/ranks.py [--ranks 1,2,4] [--rounds 2] [--models golf3m] [--tokens 32768] [--out RESULT.json]

Measured is what `pgolf.calibrate` and `pgolf.pack` take together, in processes that have imported and compiled everything, each
held to one core. Rounds are interleaved; of each number of ranks the best is kept. Where there are fewer cores than ranks, or
others use them, the wall says little: `busiest` is the largest sum of processor seconds that one rank took, which is the wall
of a machine that has a free core for each.

golf3m is ../shared/data, calibrated on its text; the others are benchmarks/models with random weights, on random tokens.
Models are added to those in RESULT.json, and the tables of docs/SCALE.md are made anew.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import GOLF3M, RESULTS, ROOT, machine

LENGTH = 512  # tokens of a sequence
GOLF = "golf3m"


def job(model: str, ranks: int, tokens: int) -> list[dict[str, Any]]:
    """What each rank of a job tells of itself."""
    from tests.helpers import free_port

    port, cores = free_port(), sorted(os.sched_getaffinity(0))
    started = []
    for rank in range(ranks):
        words = [sys.executable, __file__, "--rank", str(rank), "--models", model, "--tokens", str(tokens)]
        told = {"RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in told.items()}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PGOLF_CORE": str(cores[rank % len(cores)])}
        started.append(subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True))
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"a rank of {ranks} failed on {model}")
    return [json.loads(each.splitlines()[-1]) for each in said]


def rank_of(model: str, tokens: int) -> dict[str, Any]:
    """One rank's work, and what it took: seconds of the wall and of the processor, of both parts."""
    os.sched_setaffinity(0, {int(os.environ["PGOLF_CORE"])})
    import torch
    from torch import distributed

    import pgolf
    from benchmarks.headline import MODELS
    from pgolf.models import checkpoint, usermodel
    from tests.helpers import toy_module, toy_state

    distributed.init_process_group("gloo")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    path, spec, text = _inputs(model, tokens)
    source = checkpoint.read(path)
    module = usermodel.load(spec)
    usermodel.load_state(module, source.state_dict())
    toy = toy_module(toy_state())
    pgolf.pack(toy, None, budget="9kB", curvature=pgolf.calibrate(toy, torch.zeros(1, 8, dtype=torch.int64)))
    distributed.barrier()
    marks = [(time.perf_counter(), time.process_time())]
    curvature = pgolf.calibrate(module, text[rank::ranks])
    marks.append((time.perf_counter(), time.process_time()))
    made = pgolf.pack(source, None, budget="1MB" if model == GOLF else MODELS[model][2], curvature=curvature)
    marks.append((time.perf_counter(), time.process_time()))
    distributed.barrier()
    distributed.destroy_process_group()
    parts = {
        f"{part}_{what}": marks[i + 1][k] - marks[i][k]
        for i, part in enumerate(("calibrate", "pack"))
        for k, what in enumerate(("seconds", "processor_seconds"))
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return parts | {
        "peak_gib": peak,
        "bytes": made.artifact_bytes,
        "weights": sum(p.numel() for p in module.parameters()),
    }


def _inputs(model: str, tokens: int) -> tuple[Path, str, Any]:
    """(checkpoint, how --model names its class, int64 [rows, LENGTH] to calibrate on)."""
    import torch

    from pgolf.data.shards import read_shard

    rows = max(1, tokens // LENGTH)
    if model != GOLF:
        place = Path(os.environ["PGOLF_INPUTS"])
        ids = torch.randint(1024, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
        return place / f"{model}.pt", (place / f"{model}.spec").read_text(), ids
    shard = read_shard(GOLF3M / "text_train_000000.bin")[: rows * LENGTH]
    ids = torch.from_numpy(shard.astype("int64")).view(rows, LENGTH)
    return GOLF3M / "golf3m" / "ckpt.pt", f"{GOLF3M / 'golf3m' / 'model.py'}:GPT", ids


def summary(ranks: int, told: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the result."""
    busy = [each["calibrate_processor_seconds"] + each["pack_processor_seconds"] for each in told]
    return {
        "ranks": ranks,
        "seconds": max(each["calibrate_seconds"] + each["pack_seconds"] for each in told),
        "busiest": max(busy),
        "all_processor_seconds": sum(busy),
        "calibrate_busiest": max(each["calibrate_processor_seconds"] for each in told),
        "pack_busiest": max(each["pack_processor_seconds"] for each in told),
        "peak_gib": max(each["peak_gib"] for each in told),
        "bytes": told[0]["bytes"],
        "weights": told[0]["weights"],
    }


def measured(model: str, counts: list[int], rounds: int, tokens: int) -> dict[str, Any]:
    """The best row of each number of ranks, and their ratios to one rank's."""
    rows: dict[int, dict[str, Any]] = {}
    for _ in range(rounds):
        for count in counts:
            row = summary(count, job(model, count, tokens))
            print(json.dumps(row), flush=True)
            best = rows.get(count, row)
            rows[count] = row | {key: min(row[key], best[key]) for key in row}
    one = rows[min(rows)]
    for row in rows.values():
        row |= {"wall_ratio": row["seconds"] / one["seconds"], "busiest_ratio": row["busiest"] / one["busiest"]}
    return {"model": model, "tokens": tokens, "rounds": rounds, "load": os.getloadavg()[0], "rows": list(rows.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--models", default=GOLF if (GOLF3M / "golf3m").exists() else "stock")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "ranks.json")
    args = parser.parse_args()
    if args.rank is not None:
        print(json.dumps(rank_of(args.models, args.tokens)))
        return
    from benchmarks import scale
    from benchmarks.headline import checkpoint

    found = json.loads(args.out.read_text())["models"] if args.out.exists() else []
    with tempfile.TemporaryDirectory() as place:
        os.environ["PGOLF_INPUTS"] = place
        for model in args.models.split(","):
            if model != GOLF:
                (Path(place) / f"{model}.spec").write_text(checkpoint(model, Path(place))[1])
            row = measured(model, [int(n) for n in args.ranks.split(",")], args.rounds, args.tokens)
            found = [each for each in found if each["model"] != model] + [row | {"date": machine()["date"]}]
    from pgolf import report

    report.write_json(args.out, {"models": found} | machine())
    if args.out == RESULTS / "ranks.json":
        scale.PAGE.write_text(scale.written(scale.PAGE.read_text()))


if __name__ == "__main__":
    main()
