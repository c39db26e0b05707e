"""What each modelling option is worth on a plain model: the same steps with and without it, before packing and after.

    python benchmarks/modelling.py [--rows baseline smear ...] [--seed 0] [--steps 100] [--out RESULT.json]

Trains 3.2M weights in five layers without options (PLAIN) on the shared text (vocabulary 1024), one thread; scores the
first 65,536 validation targets in windows of 256, packs with `auto` at 3 bits a weight, everything counted, and scores
again. An option that adds weights is also packed into the baseline's bytes. Rows that the result file holds already are
kept, so a run that was stopped goes on. Checkpoints go to --keep.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import GOLF3M, RESULTS, machine
from pgolf import report
from pgolf.data import tokenizers
from pgolf.data.corpus import BOS
from pgolf.data.shards import WindowSampler, read_shard
from pgolf.fitting import packing
from pgolf.loading import dense
from pgolf.packer.format import artifact
from pgolf.scoring import bpb
from pgolf.train.loop.pack_after import training_curvature
from pgolf.train.loop.recipes import RECIPES, override
from pgolf.train.loop.save import save_checkpoint
from pgolf.train.loop.trainer import Trainer
from pgolf.train.model.gpt import GPT

BITS = 3.0
CALIBRATION_TOKENS = 4096
SCORED_TOKENS = 65536
PLAIN = ["layers=5", "smear=0", "bigram_buckets=0", "bigram_dim=64", "attn_gate=0", "value_residual=0"]
PLAIN += ["batch_size=8", "matrix_lr=0.04", "embedding_lr=0.02", "minutes=none"]
ROWS: dict[str, list[str]] = {
    "baseline": [],
    "smear": ["smear=1"],
    "bigram": ["bigram_buckets=4096", "bigram_dim=64"],
    "xsa": ["xsa=2"],
    "value_residual": ["value_residual=1"],
    "attn_gate": ["attn_gate=12"],
    "resid_mix": ["resid_mix=1"],
    "lanes": ["lanes=2"],
    "loop": ["loop=2"],
    "loop_untied": ["loop=2", "loop_untied=1"],
    "spectral": ["spectral=0.5"],
    "decay": ["matrix_decay=0.1"],
    "paying": ["smear=1", "bigram_buckets=4096", "bigram_dim=64", "value_residual=1"],
}


class Bench:
    """Data of one seed, and what is done with a model on it."""

    def __init__(self, seed: int, steps: int) -> None:
        self.seed = seed
        self.recipe = override(RECIPES["small"], [*PLAIN, f"steps={steps}"])
        shard = read_shard(GOLF3M / "text_train_000000.bin")
        self.sampler = WindowSampler([shard], self.recipe.seq_len, self.recipe.batch_size, seed, bos=BOS)

    @cached_property
    def validation(self) -> tuple[Any, Any]:
        """Tokens and the bytes of their targets."""
        tokens = read_shard(GOLF3M / "text_val_000000.bin")[: SCORED_TOKENS + 1]
        table = tokenizers.token_bytes(GOLF3M / "tokenizers" / "text_1024_bpe.model")
        return tokens, tokenizers.stream_bytes(tokens, table)

    def trained(self, settings: list[str], keep: Path) -> tuple[GPT, dict[str, Any]]:
        recipe = override(self.recipe, settings)
        model = GPT(recipe.model, seed=self.seed)
        trainer = Trainer(model, self.sampler, recipe.train)
        trainer.run()
        save_checkpoint(keep, model.state_dict(), recipe.to_config(seed=self.seed, tokenizer=""))
        return model, {"train_seconds": trainer.seconds}

    def score(self, model: GPT) -> float:
        tokens, counts = self.validation
        return bpb.evaluate(model.forward_logits, tokens, counts, seq_len=self.recipe.seq_len, batch_size=16).bpb

    def packed(self, model: GPT, curvature: Any, budget: int) -> dict[str, Any]:
        """Bytes and BPB of `model` packed into `budget` bytes; the model itself is left as it was."""
        made = packing.pack(model, None, curvature=curvature, budget=budget)
        copy = GPT(model.config)
        copy.load_state_dict(dense.tensors_of(artifact.decode(made.data)[0]))
        return {"bytes": made.artifact_bytes, "bpb": self.score(copy.eval())}

    def row(self, name: str, keep: Path, baseline: int | None) -> dict[str, Any]:
        """baseline: bytes of the packed baseline, where they are known."""
        model, facts = self.trained(ROWS[name], keep / f"{name}-{self.seed}.pt")
        weights = sum(param.numel() for param in model.parameters())
        facts = {"row": name, "seed": self.seed, "set": ROWS[name], "weights": weights, **facts}
        facts["bpb"] = self.score(model)
        curvature = training_curvature(model, self.sampler, tokens=CALIBRATION_TOKENS, seed=self.seed)
        assert set(curvature.coverage.values()) <= {"traced", "not a matrix"}
        facts["packed"] = self.packed(model, curvature, int(BITS * weights / 8))
        if baseline is not None and facts["packed"]["bytes"] > 1.01 * baseline:
            facts["packed_into_baseline"] = self.packed(model, curvature, baseline)
        return facts


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--keep", type=Path, default=Path(".scratch/modelling"))
    parser.add_argument("--out", type=Path, default=RESULTS / "modelling.json")
    return parser.parse_args()


def main() -> None:
    args = parse()
    args.keep.mkdir(parents=True, exist_ok=True)
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    head = machine() | {"steps": args.steps, "bits": BITS, "scored_tokens": SCORED_TOKENS}
    bench = Bench(args.seed, args.steps)

    for name in args.rows:
        if any((row["row"], row["seed"]) == (name, args.seed) for row in rows):
            continue
        baseline = next((r["packed"]["bytes"] for r in rows if r["row"] == "baseline"), None)
        began = time.monotonic()
        rows.append(bench.row(name, args.keep, baseline) | {"seconds": time.monotonic() - began})
        print(rows[-1], flush=True)
        report.write_json(args.out, head | {"rows": rows})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
