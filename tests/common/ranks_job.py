"""What the ranks of tests/common/test_ranks.py run: `python -m tests.common.ranks_job FOLDER MODE RANK WORLD PORT`."""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

import pgolf
from pgolf.errors import PgolfError
from pgolf.fitting import plan
from pgolf.fitting.trial import Job
from tests.helpers import generator, toy_module, toy_state

SHORT = 4  # seconds


def calm_model():
    """A toy whose softmax is not one-hot: with that, gradients are rounding noise."""
    state = toy_state()
    state["tok_emb.weight"] *= 0.1
    return toy_module(state)


def slow(rank):
    """From here on packing takes longer than the job's own group waits for anybody."""
    plain = plan.make

    def late(*arguments, **named):
        time.sleep(3 * SHORT)
        return plain(*arguments, **named)

    if rank == 0:
        plan.make = late


def watched(folder, curvature):
    """The names of the matrices that this rank rounds from here on; rank 0 keeps the curvature for one that packs alone."""
    if distributed.get_rank() == 0:
        curvature.save(folder / "shared.curv")
    seen, plain = set(), Job.round

    def noted(job, name, index, step, *made):
        seen.add(name)
        return plain(job, name, index, step, *made)

    Job.round = noted
    return seen


def refusals(model, sharded, ids):
    """What is said of modules that cannot be calibrated, or packed, as they are."""
    from torch.distributed import pipelining

    said = []
    stage = pipelining.PipelineStage(model, distributed.get_rank(), distributed.get_world_size(), torch.device("cpu"))
    for attempt in (lambda: pgolf.calibrate(sharded, [ids]), lambda: pgolf.pack(stage, None, budget="9kB")):
        try:
            attempt()
        except PgolfError as error:
            said.append(str(error))
    return said


def main(folder: Path, mode: str, rank: int, world: int, port: str) -> None:
    distributed.init_process_group(
        "gloo",
        f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=SHORT if mode == "slow" else 60),
    )
    model = calm_model()
    ids = torch.randint(0, 64, (8, 32), generator=generator(7))[rank::world]
    try:
        if mode == "bad tokens on rank 1" and rank == 1:
            ids = ids + 1000
        curvature = pgolf.calibrate(model, [ids] if mode != "nothing on rank 1" or rank == 0 else [])
        budget = 100 if mode == "too small" else "9kB"
        if mode == "slow":
            slow(rank)
        if mode == "killed" and rank == 0:
            plan.make = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        rounded = watched(folder, curvature) if mode in {"shared", "fully sharded"} else None
        if mode == "other weights" and rank == 1:
            with torch.no_grad():
                model.get_parameter("up.weight").mul_(2)
        if mode == "fully sharded":
            from torch.distributed.fsdp import fully_shard

            sharded = fully_shard(calm_model())
            said = refusals(model, sharded, ids)
            shapes = [list(p.to_local().shape) for p in sharded.parameters()]
            model = torch.compile(sharded) if rank else sharded
        report = pgolf.pack(model, folder / "m.pgolf", budget=budget, curvature=curvature)
        state = pgolf.load(folder / "m.pgolf")
        facts = {
            "tokens": curvature.tokens,
            "trace": float(curvature.get("up.weight")[0].H.trace()),
            "bytes": report.artifact_bytes,
            "bits": [int(t.view(torch.uint8).long().sum()) for t in state.values() if t.dim()],
        }
        if mode == "fully sharded":
            facts |= {"said": said, "shapes": shapes}
        if rounded is not None:
            facts["rounded"] = sorted(rounded)
    except PgolfError as error:
        facts = {"error": type(error).__name__, "says": str(error)}
    (folder / f"rank{rank}.json").write_text(json.dumps(facts))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
