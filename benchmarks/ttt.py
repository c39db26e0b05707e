"""What test-time training gains, and what it costs: golf3m and its 3-bit artifact, paired over documents.

    python benchmarks/ttt.py [--documents 40] [--out R.json]        needs ../shared/data

The comparison is a sliding window within documents whose targets see the same contexts.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import GOLF3M, RESULTS, machine
from pgolf import report
from pgolf.data import shards as data
from pgolf.data import tokenizers
from pgolf.data.shards import document_starts
from pgolf.fitting import packing
from pgolf.loading import dense
from pgolf.models import checkpoint, usermodel
from pgolf.packer.format import artifact
from pgolf.quant.curvature.collect import calibrate
from pgolf.scoring import paired, ttt
from pgolf.scoring.documents import Documents, per_document
from pgolf.scoring.reading import Reading

BOS = 1
SEQ_LEN = 512  # golf3m gets worse beyond
BITS = 3.0
READINGS = {
    "windows": Reading(SEQ_LEN, stride=ttt.TTTSettings().chunk, documents=True),
    "ttt": Reading(SEQ_LEN, ttt=ttt.TTTSettings()),
}


def packed(source: checkpoint.Checkpoint, model: nn.Module) -> tuple[bytes, float]:
    """An artifact of `BITS` for each weight, calibrated on 65,536 training tokens; and the processor seconds it took."""
    began = time.process_time()
    shards = [data.read_shard(GOLF3M / "text_train_000000.bin")]
    batch = data.WindowSampler(shards, SEQ_LEN, 65536 // SEQ_LEN, 0).batch(0)
    curvature = calibrate(model, batch[:, :-1], plain=True, seed=0)
    weights = sum(tensor.numel() for tensor in source.tensors.values())
    made = packing.pack(source, None, budget=int(BITS * weights / 8), curvature=curvature)
    return made.data, time.process_time() - began


def scored(model: nn.Module, tokens: np.ndarray, counts: np.ndarray, name: str) -> tuple[Documents, dict[str, Any]]:
    """The score by document of one reading of `tokens` [N + 1], and its figures."""
    reading, began = READINGS[name], time.process_time()
    nats = reading.score(model, tokens, BOS)
    seconds = time.process_time() - began
    found = per_document(nats, counts, document_starts(tokens[:-1], BOS))
    figures = {"how": str(reading), "bpb": found.bpb, "cpu_seconds": seconds, "tokens": len(nats)}
    return found, figures | {"estimate": paired.interval(found).to_json()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS / "ttt_golf3m.json")
    args = parser.parse_args()
    if not GOLF3M.is_dir():
        sys.exit(f"{GOLF3M} is not there: this benchmark needs its model")
    shard = data.read_shard(GOLF3M / "text_val_000000.bin")
    tokens = np.array(shard[: document_starts(shard, BOS)[args.documents] + 1])  # up to the next document's start
    counts = tokenizers.stream_bytes(tokens, tokenizers.token_bytes(GOLF3M / "tokenizers" / "text_1024_bpe.model"))
    source = checkpoint.read(GOLF3M / "golf3m" / "ckpt.pt")
    model = usermodel.load(f"{GOLF3M / 'golf3m' / 'model.py'}:GPT", source.state_dict())
    artifact_bytes, seconds = packed(source, model)
    states = {"fp32": source.state_dict(), "artifact": dense.tensors_of(artifact.decode(artifact_bytes)[0])}
    facts: dict[str, Any] = {"documents": args.documents, "settings": asdict(ttt.TTTSettings()), "scores": {}}
    facts |= {"artifact_bytes": len(artifact_bytes), "pack_cpu_seconds": seconds, "bits_per_weight": BITS}
    for state_name, state in states.items():
        usermodel.load_state(model, state)
        both, figures = zip(*(scored(model, tokens, counts, name) for name in READINGS), strict=True)
        gain = paired.difference(*both).to_json()
        facts["scores"][state_name] = dict(zip(READINGS, figures, strict=True)) | {"difference": gain}
        sys.stderr.write(f"{state_name}: {figures[0]['bpb']:.5f} {figures[1]['bpb']:.5f} {gain['value']:+.5f}\n")
        report.write_json(args.out, machine() | facts)


if __name__ == "__main__":
    main()
