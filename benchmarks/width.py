"""Parameters or bits: models of five sizes in the same bytes, packed by `auto`, with `--tune` too, and by the contest's packer.

    python benchmarks/width.py [--steps 1200] [--keep DIR] [--out RESULT.json]    train, pack and score what is missing
    python benchmarks/width.py --rates                                            only measure seconds a token
    python benchmarks/width.py --read                                             only tables and picture of what is there

`small` of `pgolf train` scaled to SIZES, its table a third of the weights, on the text of ../shared/data. The sizes lie around
the one that minutes of one core train best: of 1.5M to 6.2M weights the smallest won by far (width_large.json: this script at
commit 3688809 with --steps 500).
Equal time is told in tokens, so that a busy machine changes nothing: processor seconds a token are measured once (one thread, the
sizes in turns, RATES), and each size reads as many tokens as take the time that the middle one needs for its --steps. Equal
tokens: all take --steps. Schedules go by steps. The contest's packer comes within NEAR of a byte count, and `auto` gets the bytes
that it took; so does `auto` tuned on TUNED_TOKENS of training text, where time is equal, with the first seed, last of all. A
point outside BITS is left out: no packer is at its best there. The result is written after every model and point, and a run that
was broken off goes on where it was, in the middle of a training too.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import width_read
from benchmarks.common import GOLF3M, RESULTS, machine
from benchmarks.width_read import BITS, TUNED
from pgolf import report
from pgolf.data import tokenizers
from pgolf.data.corpus import BOS
from pgolf.data.shards import WindowSampler, read_shard
from pgolf.fitting import packing
from pgolf.fitting.baselines import HOME_K, contest
from pgolf.fitting.live import Live
from pgolf.loading import dense
from pgolf.packer.format import artifact
from pgolf.scoring import bpb
from pgolf.train.loop.pack_after import training_curvature
from pgolf.train.loop.recipes import RECIPES, Recipe, override
from pgolf.train.loop.save import read_state, save_checkpoint, save_state
from pgolf.train.loop.trainer import Trainer
from pgolf.train.model.gpt import GPT

SIZES = {  # name: width, rows of the table of token pairs
    "0.25M": (64, 2560),
    "0.37M": (80, 3584),
    "0.58M": (104, 5632),
    "0.95M": (136, 9728),
    "1.5M": (176, 16384),
}
MIDDLE = "0.58M"
# Processor seconds a token of `--rates`, 2026-11-28: four turns on a busy machine, torch 2.13.0.
RATES = {"0.25M": 3.743e-5, "0.37M": 4.790e-5, "0.58M": 6.818e-5, "0.95M": 9.043e-5, "1.5M": 1.320e-4}
BYTES = (100_000, 160_000, 250_000, 400_000)
NEAR = 0.005  # of a byte count
TRIALS = 3  # of the contest's packer at a byte count
CALIBRATION_TOKENS = 20480
TUNED_TOKENS, TUNED_HELD = 500_000, 8192  # read by --tune, and held back from it
SCORED_TOKENS = 65536
SAVE_EVERY = 10  # steps


@dataclass(frozen=True)
class Run:
    """A model to train: equal says of what it got as much as the middle size, "time", "tokens" or "both"."""

    size: str
    seed: int
    equal: str


def runs() -> Iterator[Run]:
    """The most telling first: all sizes at equal time, all at equal tokens, then two more seeds of the three in the middle."""
    for seed, sizes in ((0, list(SIZES)), (1, list(SIZES)[1:-1]), (2, list(SIZES)[1:-1])):
        others = [size for size in sizes if size != MIDDLE]
        yield Run(MIDDLE, seed, "both")
        for equal in ("time", "tokens"):
            yield from (Run(size, seed, equal) for size in others)


def recipe_of(size: str, steps: int) -> Recipe:
    width, rows = SIZES[size]
    return override(RECIPES["small"], [f"dim={width}", f"bigram_buckets={rows}", f"steps={steps}", "minutes=none"])


class Bench:
    """Text to train and to score on, and what is done with a model on it."""

    def __init__(self, steps: int, keep: Path) -> None:
        self.steps, self.keep = steps, keep
        self.shard = read_shard(GOLF3M / "text_train_000000.bin")
        self.held = read_shard(GOLF3M / "text_val_000000.bin")[: SCORED_TOKENS + 1]
        table = tokenizers.token_bytes(GOLF3M / "tokenizers" / "text_1024_bpe.model")
        self.num_bytes = int(tokenizers.stream_bytes(self.held, table)[1:].sum(dtype=np.int64))

    def sampler(self, recipe: Recipe, seed: int) -> WindowSampler:
        return WindowSampler([self.shard], recipe.seq_len, recipe.batch_size, seed, bos=BOS)

    def windows(self, tokens: int, seed: int) -> Tensor:
        """int64 [N, T] of training text at random places."""
        seq_len = RECIPES["small"].seq_len
        return WindowSampler([self.shard], seq_len, tokens // seq_len, seed, bos=BOS).batch(0)[:, :-1]

    def steps_of(self, run: Run) -> int:
        return round(self.steps * RATES[MIDDLE] / RATES[run.size]) if run.equal == "time" else self.steps

    def trained(self, run: Run) -> GPT:
        """From its checkpoint where there is one, else trained, from its last saved state on."""
        recipe = recipe_of(run.size, self.steps_of(run))
        model = GPT(recipe.model, seed=run.seed)
        path = self.keep / f"{run.size}-{run.seed}-{run.equal}-{self.steps}.pt"
        if path.is_file():
            model.load_state_dict(torch.load(path)["model"])
            return model.eval()
        config = recipe.to_config(seed=run.seed, tokenizer="")
        trainer = Trainer(model, self.sampler(recipe, run.seed), recipe.train)
        state = path.with_suffix(".state")
        if state.is_file():
            trainer.load_state_dict(read_state(state, config))

        def keep(info: Any) -> None:
            if info.step % SAVE_EVERY == 0:
                save_state(state, trainer.state_dict(), config)
                print(f"{run} step {info.step}/{recipe.train.steps} loss {info.loss:.3f}", file=sys.stderr, flush=True)

        trainer.run(keep)
        save_checkpoint(path, model.state_dict(), config)
        state.unlink(missing_ok=True)
        return model.eval()

    def scored(self, model: GPT) -> NDArray[np.float64]:
        """Nats of every window of held-out text."""
        seq_len = RECIPES["small"].seq_len
        nats = bpb.score_windows(model.forward_logits, self.held, seq_len=seq_len, batch_size=16)
        return nats.reshape(-1, seq_len).sum(axis=1, dtype=np.float64)

    def bpb(self, nats: NDArray[np.float64]) -> float:
        return float(nats.sum()) / math.log(2) / self.num_bytes

    def error(self, nats: NDArray[np.float64]) -> float:
        """Standard error of `bpb` over windows; of differences, where `nats` are such."""
        return float(nats.std(ddof=1)) * math.sqrt(len(nats)) / math.log(2) / self.num_bytes


class Packing:
    """One model and its points."""

    def __init__(self, bench: Bench, run: Run, model: GPT) -> None:
        self.bench, self.model = bench, model
        self.weights = sum(param.numel() for param in model.parameters())
        self.before = bench.scored(model)
        sampler = bench.sampler(recipe_of(run.size, 1), run.seed)
        self.curvature = training_curvature(model, sampler, tokens=CALIBRATION_TOKENS, seed=run.seed)
        self.seed = run.seed
        self.octave = 0.95 * self.weights / 8  # bytes that doubling the contest's k saves, about

    def pack(self, packer: str, target: int, **how: Any) -> dict[str, Any]:
        """A point; the model itself is left as it was."""
        made = packing.pack(self.model, None, curvature=self.curvature, **how)
        copy = GPT(self.model.config)
        copy.load_state_dict(dense.tensors_of(artifact.decode(made.data)[0]))
        after = self.bench.scored(copy.eval())
        point = {"packer": packer, "target": target, "bytes": made.artifact_bytes}
        point |= {"bits": 8 * made.artifact_bytes / self.weights, "bpb": self.bench.bpb(after)}
        return point | {"rise": self.bench.bpb(after - self.before), "rise_se": self.bench.error(after - self.before)}

    def at(self, target: int) -> list[dict[str, Any]]:
        """Both packers at about `target` bytes, and at the same bytes."""
        k = HOME_K * 2 ** (3.52 - 8 * target / self.weights)  # 3.52 bits: golf3m at home
        for _ in range(TRIALS):
            theirs = self.pack("contest", target, **contest(k)) | {"k": k}
            if abs(theirs["bytes"] - target) <= NEAR * target:
                break
            k *= 2 ** ((theirs["bytes"] - target) / self.octave)
        return [theirs, self.pack("auto", target, budget=theirs["bytes"])]

    def tuned(self, target: int, budget: int) -> dict[str, Any]:
        """`auto` and the closed loop in as many bytes."""
        text = self.bench.windows(TUNED_TOKENS + TUNED_HELD, self.seed)
        held = TUNED_HELD // text.shape[1]
        live = Live(self.model, text[:held], text[held:], logits="forward_logits")
        return self.pack(TUNED, target, budget=budget, text=live, tune=TUNED_TOKENS, seed=self.seed)


def wanted(weights: int) -> list[int]:
    return [target for target in BYTES if BITS[0] <= 8 * target / weights <= BITS[1]]


def measured_rates(rounds: int = 4) -> dict[str, float]:
    """Processor seconds a token of every size, in turns; the fastest turn of each, which other work disturbed least."""
    shard = read_shard(GOLF3M / "text_train_000000.bin")
    trainers = {}
    for size in SIZES:
        recipe = recipe_of(size, 10 * rounds)
        sampler = WindowSampler([shard], recipe.seq_len, recipe.batch_size, 0, bos=BOS)
        trainers[size] = Trainer(GPT(recipe.model, seed=0), sampler, recipe.train)
        trainers[size].step()
    best = dict.fromkeys(SIZES, math.inf)
    for _ in range(rounds):
        for size, trainer in trainers.items():
            began = time.process_time()
            info = trainer.step()
            best[size] = min(best[size], (time.process_time() - began) * info.step / info.tokens)
    return best


def go_on(args: argparse.Namespace) -> None:
    """Everything that the result does not hold yet."""
    args.keep.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = json.loads(args.out.read_text())["rows"] if args.out.is_file() else []
    facts = {"steps": args.steps, "rates": RATES, "scored_tokens": SCORED_TOKENS}
    head = machine() | facts | {"calibration_tokens": CALIBRATION_TOKENS, "tuned_tokens": TUNED_TOKENS}
    bench = Bench(args.steps, args.keep)

    def have(row: dict[str, Any], packer: str) -> set[int]:
        return {point["target"] for point in row["points"] if point["packer"] == packer}

    for run in runs():
        row = next((r for r in rows if asdict(run).items() <= r.items()), None)
        if row and have(row, "auto") == set(wanted(row["weights"])):
            continue
        packed = Packing(bench, run, bench.trained(run))
        if row is None:
            row = asdict(run) | {"weights": packed.weights, "steps": bench.steps_of(run)}
            row |= {"bpb": bench.bpb(packed.before), "bpb_se": bench.error(packed.before), "points": []}
            rows.append(row)
        for target in wanted(packed.weights):
            if target not in have(row, "auto"):
                row["points"] += packed.at(target)
            report.write_json(args.out, head | {"rows": rows})
            print({key: row[key] for key in ("size", "seed", "equal", "bpb")}, row["points"][-2:], flush=True)
    for row in rows:
        missing = have(row, "auto") - have(row, TUNED)
        if row["equal"] == "tokens" or row["seed"] or not missing:
            continue
        run = Run(row["size"], row["seed"], row["equal"])
        packed = Packing(bench, run, bench.trained(run))
        for target in sorted(missing):
            (size,) = (p["bytes"] for p in row["points"] if (p["packer"], p["target"]) == ("contest", target))
            row["points"].append(packed.tuned(target, size))
            report.write_json(args.out, head | {"rows": rows})
            print(asdict(run), row["points"][-1], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200, help="of the middle size, 3,072 tokens each")
    parser.add_argument("--keep", type=Path, default=Path(".scratch/width"), help="checkpoints, and states of training")
    parser.add_argument("--out", type=Path, default=RESULTS / "width.json")
    parser.add_argument("--rates", action="store_true")
    parser.add_argument("--read", action="store_true")
    args = parser.parse_args()
    if args.rates:
        print(measured_rates())
        return
    if not args.read:
        go_on(args)
    width_read.show(args.out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
