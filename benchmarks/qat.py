"""Does QAT pay: the same model, data and steps, with and without it, packed to real bytes and scored on held-out text.

    python benchmarks/qat.py [--seeds 2] [--start 0.75] [--out RESULT.json]      `tiny` on the standard library's text

Each seed trains once to the start of QAT, where its state is saved; every row goes on from there to the end. That equals
a run of its own, since QAT does nothing before its start. Rows that the result file holds already are kept, so a run that
was stopped goes on.

tax: BPB of the packed model minus that of the same seed's weights without QAT and without packing. It counts what QAT
costs the unpacked model too.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import RESULTS, machine
from pgolf import report
from pgolf.data import tokenizers
from pgolf.data.corpus import BOS
from pgolf.data.shards import WindowSampler, read_shard
from pgolf.fitting import packing
from pgolf.loading import dense
from pgolf.packer.format import artifact
from pgolf.scoring import bpb
from pgolf.train.loop.demo_model import DEMO, DemoData, prepare_demo
from pgolf.train.loop.pack_after import measured_while_training, training_curvature
from pgolf.train.loop.trainer import Trainer
from pgolf.train.model.gpt import GPT
from pgolf.train.qat.hooks import QAT

CALIBRATION_TOKENS = 16384
SCORED_TOKENS = 65536


class Pack(NamedTuple):
    """How a model is packed, and the grid and rules that QAT is given for it."""

    how: dict[str, Any]
    qat: dict[str, Any]


def classic(method: str, grid: str, embedding: str) -> Pack:
    """A fixed grid: with error feedback, or (sdclip) as the straight-through estimator trains for it."""
    rules = [f"*={grid}", f"tok_emb.*={embedding}"]
    return Pack({"method": method, "rules": rules}, {"rules": tuple(rules)})


def budgeted(bits: float) -> Pack:
    """`auto` at a budget of `bits` a weight, everything counted."""
    return Pack({"bits": bits}, {"grid": "auto", "bits": bits, "recalibrate": 0.1})


PACKS = {
    "gptq int5 k=6.2": classic("gptq", "int5,k=6.2", "int8,k=20"),
    "gptq int4 k=5": classic("gptq", "int4,k=5", "int6,k=12.85"),
    "sdclip int4 k=5": classic("sdclip", "int4,k=5", "int6,k=12.85"),
    "auto 3 bits": budgeted(3.0),
    "auto 2.5 bits": budgeted(2.5),
}
MODES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "ste": {"rounding": "ste"},
    "noise": {"rounding": "noise"},
    "soft": {"rounding": "soft"},
    "noise+rate": {"rounding": "noise", "rate": 0.02},
}


class Bench:
    """One seed: its training up to the start of QAT, and what follows from there."""

    def __init__(self, files: DemoData, seed: int, start: float) -> None:
        self.files, self.seed, self.start = files, seed, start
        self.sampler = WindowSampler([read_shard(files.train)], DEMO.seq_len, DEMO.batch_size, seed, bos=BOS)
        self.tokens = read_shard(files.val)
        self.counts = tokenizers.stream_bytes(self.tokens, tokenizers.token_bytes(files.tokenizer))
        first = self.trainer(None)
        while first.progress < start:
            first.step()
        self.state = copy.deepcopy(first.state_dict())

    @cached_property
    def plain(self) -> GPT:
        """Trained to the end without QAT."""
        return self.finished(None)

    def trainer(self, options: dict[str, Any] | None) -> Trainer:
        model = GPT(DEMO.model, seed=self.seed)
        measure = measured_while_training(model, self.sampler, seed=self.seed)
        qat = None
        if options is not None:
            qat = QAT(model, curvature=measure, start=self.start, seed=self.seed, **options)
        return Trainer(model.train(), self.sampler, DEMO.train, qat=qat)

    def finished(self, options: dict[str, Any] | None) -> GPT:
        """The averaged model at the end of training."""
        trainer = self.trainer(options)
        trainer.load_state_dict(copy.deepcopy(self.state))
        trainer.run()
        if trainer.qat is not None:
            trainer.qat.remove()
        return trainer.model  # type: ignore[return-value]

    def score(self, model: GPT) -> float:
        return bpb.evaluate(
            model.forward_logits,
            self.tokens,
            self.counts,
            seq_len=DEMO.seq_len,
            max_tokens=SCORED_TOKENS,
            batch_size=32,
        ).bpb

    def row(self, model: GPT, pack: Pack) -> dict[str, Any]:
        """Bytes and BPB of `model` packed; the model is left packed."""
        curvature = training_curvature(model, self.sampler, tokens=CALIBRATION_TOKENS, seed=self.seed)
        how = dict(pack.how)
        weights = sum(param.numel() for param in model.parameters())
        if "bits" in how:
            how["budget"] = int(how.pop("bits") * weights / 8)
        made = packing.pack(model, None, curvature=curvature, **how)
        facts = {"bytes": made.artifact_bytes, "bits_per_weight": made.bits_per_weight}
        model.load_state_dict(dense.tensors_of(artifact.decode(made.data)[0]))
        return facts | {"bpb": self.score(model)}


def wanted(mode: str, pack: str) -> bool:
    """Soft rounding has no meaning for a lattice that feedback moves; the rate only counts where bytes are fixed."""
    return not (mode == "soft" and "auto" in pack) and not (mode == "noise+rate" and "auto" not in pack)


def rows_of(bench: Bench, mode: str, done: set[tuple[int, str, str]]) -> Iterator[dict[str, Any]]:
    """A row for every pack in this mode that is not in `done`."""
    options = MODES[mode]
    before = bench.score(bench.plain)
    for name, pack in PACKS.items():
        if (bench.seed, mode, name) in done or not wanted(mode, name):
            continue
        began = time.process_time()
        model = copy.deepcopy(bench.plain) if options is None else bench.finished(pack.qat | options)
        unpacked = bench.score(model)
        facts = bench.row(model, pack)
        facts |= {"bpb_before": before, "bpb_unpacked": unpacked, "tax": facts["bpb"] - before}
        seconds = {"cpu_seconds": time.process_time() - began}
        yield {"seed": bench.seed, "mode": mode, "pack": name, **facts, **seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--start", type=float, default=0.75)
    parser.add_argument("--out", type=Path, default=RESULTS / "qat.json")
    args = parser.parse_args()
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    done = {(row["seed"], row["mode"], row["pack"]) for row in rows}
    head = machine() | {"start": args.start, "steps": DEMO.train.steps, "scored_tokens": SCORED_TOKENS}
    with tempfile.TemporaryDirectory() as folder:
        files = prepare_demo(folder)
        benches = [Bench(files, seed, args.start) for seed in range(args.seeds)]
        for mode, bench in ((mode, bench) for mode in MODES for bench in benches):
            for row in rows_of(bench, mode, done):
                print(row, flush=True)
                rows.append(row)
                report.write_json(args.out, head | {"rows": rows})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
