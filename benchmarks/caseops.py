"""Does CaseOps pay? The same text, steps and seeds with and without it, scored on the same held-out documents.

    python benchmarks/caseops.py [--steps N...] [--seeds S...] [--train-mb MB] [--out R.json]

What will surprise you:
* Steps are equal, so tokens and compute are; the bytes read differ by as much as the tokenizers do, and are told.
* Text is that of ../shared/data, decoded; the two tokenizers are trained on all of the training text.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import GOLF3M, RESULTS, machine
from pgolf import report
from pgolf.data import caseops, sidecar, tokenizers
from pgolf.data.corpus import BOS, document_tokens, train_tokenizer
from pgolf.data.shards import document_starts, read_shard, write_shard
from pgolf.models import checkpoint
from pgolf.scoring import bpb, paired
from pgolf.scoring.documents import Documents, per_document
from pgolf.train.loop.recipes import RECIPES
from pgolf.train.loop.run_folder import train
from pgolf.train.model import rebuild

VARIANTS = {"plain": False, "caseops": True}


def documents(split: str, num_bytes: int) -> list[str]:
    """Texts of a shared shard from its beginning, at least `num_bytes` long together if it has as many."""
    tokens = read_shard(GOLF3M / f"text_{split}_000000.bin")
    processor = tokenizers.load_tokenizer(GOLF3M / "tokenizers" / "text_1024_bpe.model")
    starts, texts = document_starts(tokens, BOS), []
    for first, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        texts.append(processor.decode(tokens[first:end].tolist()))
        num_bytes -= len(texts[-1].encode())
        if num_bytes <= 0:
            break
    return texts


@dataclass(frozen=True)
class Variant:
    """A folder with a tokenizer and shards of the texts."""

    folder: Path
    with_caseops: bool
    vocab_size: int

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.model"

    def prepare(self, train_texts: list[str], held_out: list[str]) -> None:
        self.folder.mkdir()
        train_tokenizer(train_texts, self.tokenizer, self.vocab_size, with_caseops=self.with_caseops)
        for split, texts in (("train", train_texts), ("val", held_out)):
            tokens = document_tokens(texts, self.tokenizer)
            counts = tokenizers.stream_bytes(tokens, tokenizers.token_bytes(self.tokenizer))
            assert counts.sum(dtype=np.int64) == sum(len(text.encode()) for text in texts)
            write_shard(self.folder / f"{split}.bin", tokens)
            write_shard(sidecar.path_of(self.folder / f"{split}.bin"), counts)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Of the training text: tokens, bytes a token, share of operators, pieces that hold a capital."""
        tokens = np.array(read_shard(self.folder / "train.bin"))
        counts = read_shard(sidecar.path_of(self.folder / "train.bin"))
        processor = tokenizers.load_tokenizer(self.tokenizer)
        operators = caseops.operator_ids(processor)
        pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size()) if not processor.is_byte(i)]
        return {
            "tokens": len(tokens),
            "bytes_per_token": float(counts.sum(dtype=np.int64) / len(tokens)),
            "operators": float(np.isin(tokens, operators.all).mean()) if operators else 0.0,
            "pieces_with_capitals": sum(piece != piece.lower() for piece in pieces),
        }

    def score(self, run: Path, seq_len: int) -> Documents:
        """Of the checkpoint in `run`, on all held-out documents."""
        source = checkpoint.read(run / "checkpoint.pt")
        model = rebuild.from_config(source.config, source.state_dict())
        tokens = np.append(read_shard(self.folder / "val.bin"), np.uint16(BOS))  # the last document ends too
        counts = np.append(read_shard(sidecar.path_of(self.folder / "val.bin")), np.uint16(0))
        nats = bpb.score_windows(model.forward_logits, tokens, seq_len=seq_len)
        return per_document(nats, counts, document_starts(tokens[:-1], BOS))


def measured(variants: dict[str, Variant], preset: str, steps: int, seed: int, folder: Path) -> dict[str, Any]:
    """Both variants trained and scored; the difference paired over documents."""
    scored, row = {}, {"preset": preset, "steps": steps, "seed": seed}
    for name, variant in variants.items():
        out, began = folder / f"{name}-{steps}-{seed}", time.process_time()
        made = train(
            preset, out, data=variant.folder, tokenizer=variant.tokenizer, seed=seed, overrides=[f"steps={steps}"]
        )
        scored[name] = variant.score(out, RECIPES[preset].seq_len)
        row[name] = {"bpb": scored[name].bpb, "tokens": made.tokens, "cpu_seconds": time.process_time() - began}
        sys.stderr.write(f"{preset} {steps} steps, seed {seed}, {name}: {scored[name].bpb:.4f}\n")
    return row | {"difference": paired.difference(scored["plain"], scored["caseops"]).to_json()}


def speed(texts: list[str]) -> dict[str, float]:
    """Megabytes of text a second of processor time, both ways."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    began = time.process_time()
    encoded = [caseops.encode(text) for text in texts]
    between = time.process_time()
    assert [caseops.decode(text) for text in encoded] == texts
    after = time.process_time()
    return {
        "encode_mb_per_second": megabytes / (between - began),
        "decode_mb_per_second": megabytes / (after - between),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--steps", type=int, nargs="+", default=[380])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--train-mb", type=float, default=8.0)
    parser.add_argument("--val-mb", type=float, default=math.inf)
    parser.add_argument("--out", type=Path, default=RESULTS / "caseops.json")
    args = parser.parse_args()
    if not GOLF3M.is_dir():
        sys.exit(f"{GOLF3M} is not there: this benchmark decodes its text")
    train_texts, held_out = documents("train", int(args.train_mb * 1e6)), documents("val", min(args.val_mb, 1e4) * 1e6)
    vocab_size = RECIPES[args.preset].model.vocab_size
    with tempfile.TemporaryDirectory() as scratch:
        variants = {name: Variant(Path(scratch) / name, on, vocab_size) for name, on in VARIANTS.items()}
        for variant in variants.values():
            variant.prepare(train_texts, held_out)
        facts = {"text": {name: variant.facts for name, variant in variants.items()}, "speed": speed(train_texts)}
        facts |= {"train_bytes": sum(len(t.encode()) for t in train_texts), "val_documents": len(held_out)}
        facts |= {"val_bytes": sum(len(t.encode()) for t in held_out), "vocab_size": vocab_size, "runs": []}
        for steps in args.steps:
            for seed in args.seeds:
                facts["runs"].append(measured(variants, args.preset, steps, seed, Path(scratch)))
                report.write_json(args.out, machine() | facts)


if __name__ == "__main__":
    main()
