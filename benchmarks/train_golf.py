"""Train a preset for a few minutes on token shards and score it on a held-out one.

    PYTHONPATH=. python3 benchmarks/train_golf.py --data TRAIN.bin... --val VAL.bin --tokenizer T.model --out DIR
        [--preset golf] [--device cuda] [--minutes 8] [--accumulate 2] [--set matrix_decay=0.3]...
        [--qat auto,bits=3,rounding=noise]

Writes DIR/checkpoint.pt (float32 averaged weights and their configuration), DIR/train.jsonl (a line a step) and
DIR/train.json: BPB of the whole validation shard in float32 by the exact byte count, disjoint windows of 1024; seconds
of training without compiling and without the probes of the validation loss; tokens a second; model FLOPs utilisation,
counting 6 FLOPs a weight and token (the tied head once, the lookup never) and causal attention.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pgolf.data.shards import WindowSampler, check_vocabulary, read_shard
from pgolf.data.tokenizers import stream_bytes, token_bytes
from pgolf.scoring.bpb import EvalResult, evaluate
from pgolf.train.loop.metrics import MetricsLog
from pgolf.train.loop.pack_after import measured_while_training
from pgolf.train.loop.recipes import RECIPES, Recipe, override
from pgolf.train.loop.save import save_checkpoint
from pgolf.train.loop.trainer import StepInfo, Trainer
from pgolf.train.model.gpt import GPT, GPTConfig
from pgolf.train.qat.hooks import QAT
from pgolf.train.qat.settings import parse_options

PROBE_TOKENS = 65536  # validation targets scored during training


class Validation:
    """A held-out shard and the bytes of its tokens."""

    def __init__(self, shard: Path, tokenizer: Path, vocab_size: int, *, context: int, most: int | None = None) -> None:
        self.context, self.tokens = context, read_shard(shard)[: None if most is None else most + 1]
        check_vocabulary(self.tokens, vocab_size)
        self.byte_counts = stream_bytes(self.tokens, token_bytes(tokenizer))

    def score(self, model: GPT, max_tokens: int | None = None) -> EvalResult:
        """BPB over disjoint windows."""
        return evaluate(
            model.forward_logits,
            self.tokens,
            self.byte_counts,
            seq_len=self.context,
            max_tokens=max_tokens,
            batch_size=16,
        )


class Log:
    """Progress callback: one JSON line a step, a printed line every few seconds, a probe of BPB every so often."""

    def __init__(self, path: Path, model: GPT, validation: Validation, probes: int) -> None:
        self.metrics, self.model, self.validation = MetricsLog(path), model, validation
        self.every, self.next_probe, self.printed = 1 / max(probes, 1), 0.0, 0.0

    def __call__(self, info: StepInfo) -> None:
        probe = {}
        if info.progress >= self.next_probe:
            self.next_probe += self.every
            probe["val_bpb"] = self.validation.score(self.model, PROBE_TOKENS).bpb
        self.metrics(info, **probe)
        if probe or time.monotonic() > self.printed + 10:
            self.printed = time.monotonic()
            line = f"step {info.step:6d}  {info.seconds:6.1f} s  loss {info.loss:.4f}"
            held_out = f"  val {probe['val_bpb']:.4f} BPB" if probe else ""
            print(f"{line}  {info.tokens / info.seconds:,.0f} tokens/s{held_out}", flush=True)


def flops_per_token(config: GPTConfig, weights: int, seq_len: int) -> float:
    """Forward and backward, of matrices and head and of causal attention."""
    return 6 * weights + 6 * config.layers * config.dim * seq_len


def summary(trainer: Trainer, recipe: Recipe, result: EvalResult, options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured, as JSON."""
    tokens = trainer.step_count * recipe.batch_size * recipe.seq_len
    weights = sum(param.numel() for param in trainer.model.parameters())
    rate = tokens / trainer.seconds
    flops = flops_per_token(recipe.model, weights, recipe.seq_len)
    cuda = trainer.device.type == "cuda"
    return {
        "bpb": result.bpb,
        "loss": result.loss,
        "val_tokens": result.tokens,
        "val_bytes": result.bytes,
        "parameters": weights,
        "steps": trainer.step_count,
        "seconds": trainer.seconds,
        "tokens": tokens,
        "epochs": tokens / sum(len(shard) for shard in trainer.sampler.shards),
        "tokens_per_second": rate,
        "mfu": rate * flops / (options.peak_tflops * 1e12) if cuda else None,
        "peak_tflops": options.peak_tflops if cuda else None,
        "peak_memory": torch.cuda.max_memory_allocated() if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "command": sys.argv,
        "notes": trainer.notes,
        "qat": None if trainer.qat is None else asdict(trainer.qat.settings),
        "recipe": asdict(recipe),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", choices=sorted(RECIPES), default="golf")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--accumulate", type=int, default=2, help="passes an update: halves the memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--probes", type=int, default=12, help="validation probes on the way")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a window that is scored")
    parser.add_argument("--val-tokens", type=int, help="of the held-out shard that are scored [all]")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bf16 peak of the device, for MFU")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="a setting of the recipe")
    parser.add_argument("--qat", help="as of `pgolf train`")
    return parser.parse_args(arguments)


def hooks(model: GPT, sampler: WindowSampler, options: argparse.Namespace) -> QAT | None:
    """What --qat asks for."""
    if options.qat is None:
        return None
    measure = measured_while_training(model, sampler, seed=options.seed)
    return QAT(model, curvature=measure, **vars(parse_options(options.qat)))


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    limits = [f"minutes={options.minutes}", f"accumulate={options.accumulate}"]
    recipe = override(RECIPES[options.preset], [*limits, *options.set])
    cuda = torch.device(options.device).type == "cuda"
    torch.backends.cuda.enable_cudnn_sdp(False)  # flash attention, as the contest's script
    shards = [read_shard(path) for path in options.data]
    for shard in shards:
        check_vocabulary(shard, recipe.model.vocab_size)
    sampler = WindowSampler(shards, recipe.seq_len, recipe.batch_size, options.seed)
    dtype = torch.bfloat16 if cuda else torch.float32
    model = GPT(recipe.model, seed=options.seed, compute_dtype=dtype).to(options.device)
    scored = {"context": options.context, "most": options.val_tokens}
    validation = Validation(options.val, options.tokenizer, recipe.model.vocab_size, **scored)
    trainer = Trainer(model, sampler, recipe.train, compile=cuda, qat=hooks(model, sampler, options))
    trainer.run(Log(options.out / "train.jsonl", model, validation, options.probes))
    model.compute_dtype = torch.float32
    tokenizer = shutil.copyfile(options.tokenizer, options.out / "tokenizer.model")
    config = recipe.to_config(seed=options.seed, tokenizer=Path(tokenizer).name)
    save_checkpoint(options.out / "checkpoint.pt", model.state_dict(), config)
    result = summary(trainer, recipe, validation.score(model), options)
    (options.out / "train.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(json.dumps({key: result[key] for key in ("bpb", "seconds", "tokens_per_second", "epochs", "mfu", "notes")}))
    if not math.isfinite(result["bpb"]):
        sys.exit("the model's loss is not finite")


if __name__ == "__main__":
    main()
