"""Processor seconds of a step of `--tune` on golf3m, on 1 and 2 ranks of one thread.

    python benchmarks/tuned_ranks.py [--ranks 1,2] [--rounds 2] [--steps 8] [--out RESULT.json]

A step is what a closed loop does between two groups: 1,024 tokens through the unquantized model and the student, here one
with 2% of noise on its matrices, back, summed over ranks, and Adam over all weights. Each rank tells its own processor
seconds; of each number of ranks the round whose busiest rank took least is kept, with the KL of every step, which has to be
that of one rank.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import GOLF3M, RESULTS, ROOT, machine

LENGTH, ROWS = 512, 64  # of the text
NOISE, RATE = 0.02, 1e-4
FIRST = 2  # steps before the clock starts


def rank_of(steps: int) -> dict[str, Any]:
    """One rank's processor seconds a step, and the KL of each."""
    import torch
    from torch import distributed

    from pgolf.data.shards import read_shard
    from pgolf.fitting.closed.party import Shared
    from pgolf.fitting.closed.repair import Pace, Repair
    from pgolf.fitting.closed.shares import Shares
    from pgolf.fitting.closed.student import Student
    from pgolf.fitting.closed.tune import BATCH
    from pgolf.fitting.closed.units import Unit
    from pgolf.models import checkpoint, usermodel

    several = int(os.environ["WORLD_SIZE"]) > 1
    if several:
        distributed.init_process_group("gloo")
    source = checkpoint.read(GOLF3M / "golf3m" / "ckpt.pt")
    model = usermodel.load(f"{GOLF3M / 'golf3m' / 'model.py'}:GPT")
    usermodel.load_state(model, source.state_dict())
    shard = read_shard(GOLF3M / "text_train_000000.bin")[: ROWS * LENGTH]
    student, generator = Student(source, model), torch.Generator().manual_seed(0)
    for name, weight in student.weights.items():
        if weight.dim() > 1:
            noise = torch.randn(weight.shape, generator=generator)
            student.reset({name: weight + NOISE * weight.std() * noise})
    moving = {Unit(name, 0): 1 for name, weight in student.weights.items() if weight.numel()}
    seen: list[float] = []
    what = (student, moving, torch.from_numpy(shard.astype("int64")).view(ROWS, LENGTH), Pace(RATE, BATCH), 1e9)
    group = distributed.group.WORLD if several else None
    told = lambda tokens, kl: seen.append(kl)  # noqa: E731  # both kinds of steps take it last
    repair = Shared(Shares(student, group), *what, told) if several else Repair(*what, told)
    with student.at_work(gradients=True):
        repair.run(FIRST)
        began = time.process_time()
        repair.run(steps)
    return {"processor_seconds": (time.process_time() - began) / steps, "kl": seen}


def job(ranks: int, steps: int) -> dict[str, Any]:
    """One round: the busiest rank's processor seconds, all ranks' together, and the KL of each step."""
    from tests.helpers import free_port

    port, started = free_port(), []
    for rank in range(ranks):
        told = {"RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in told.items()}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        words = [sys.executable, __file__, "--rank", "--steps", str(steps)]
        started.append(subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True))
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"a rank of {ranks} failed")
    found = [json.loads(each.splitlines()[-1]) for each in said]
    seconds = [each["processor_seconds"] for each in found]
    return {"ranks": ranks, "busiest": max(seconds), "all_ranks": sum(seconds), "kl": found[0]["kl"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "tuned_ranks.json")
    args = parser.parse_args()
    if args.rank:
        print(json.dumps(rank_of(args.steps)))
        return
    best: dict[int, dict[str, Any]] = {}
    for _ in range(args.rounds):
        for ranks in map(int, args.ranks.split(",")):
            row = job(ranks, args.steps)
            print(row, flush=True)
            best[ranks] = min(row, best.get(ranks, row), key=lambda each: each["busiest"])
    one = best[min(best)]
    rows = [row | {"ratio": row["busiest"] / one["busiest"]} for row in best.values()]
    from pgolf import report

    report.write_json(args.out, machine() | {"steps": args.steps, "rows": rows})


if __name__ == "__main__":
    main()
