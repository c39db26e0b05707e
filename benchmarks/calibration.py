"""What calibration text is worth: real, self-generated and random tokens, for the contest's gptq and for auto.

    python benchmarks/calibration.py [--tokens 20480] [--max-tokens N] [--out RESULT.json]      golf3m of ../shared/data

Each source gets the same number of tokens. The tax is the rise of BPB over the unquantized model on held-out text.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import GOLF3M, RESULTS, machine
from pgolf import checkpoint, pipeline, report, usermodel
from pgolf.packer import artifact
from pgolf.quant import selfgen
from pgolf.quant.calibrate import calibrate
from pgolf.quant.logits import logits_of
from pgolf.train import bpb, data

CONTEST: dict[str, Any] = {"method": "gptq", "rules": ["*=int6,k=12.85", "tok_emb.*=int8,k=20"], "coder": "brotli"}
LENGTH = 1023  # of invented sequences: real ones have 1024 tokens, generation prefers an odd number
AUTO: dict[str, Any] = {"budget": int(3.0 * 3_213_844 / 8)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20480)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "calibration_golf3m.json")
    args = parser.parse_args()
    if not GOLF3M.is_dir():
        sys.exit(f"{GOLF3M} is not there: this benchmark needs golf3m")
    source = checkpoint.read(GOLF3M / "golf3m" / "ckpt.pt")
    model = usermodel.load(f"{GOLF3M / 'golf3m' / 'model.py'}:GPT", source.state_dict())
    tokens = np.array(data.read_shard(GOLF3M / "text_val_000000.bin"))
    counts = bpb.stream_bytes(tokens, bpb.token_bytes(GOLF3M / "tokenizers" / "text_1024_bpe.model"))
    train = data.read_shard(GOLF3M / "text_train_000000.bin")

    def score(state: dict[str, torch.Tensor]) -> float:
        usermodel.load_state(model, state)
        return bpb.evaluate(logits_of(model), tokens, counts, seq_len=1024, max_tokens=args.max_tokens).bpb

    def text(kind: str, seed: int) -> torch.Tensor:
        if kind == "real":
            return data.WindowSampler([train], 1024, args.tokens // 1024, seed).batch(0)[:, :-1]
        if kind == "self":
            return selfgen.self_generate(model, sequences=args.tokens // LENGTH, length=LENGTH, seed=seed)
        return selfgen.random_tokens(1024, sequences=args.tokens // LENGTH, length=LENGTH, seed=seed)

    before = score(source.state_dict())
    rows = []
    for kind, seed in ((k, s) for s in range(args.seeds) for k in ("real", "self", "random")):
        usermodel.load_state(model, source.state_dict())
        began = time.perf_counter()
        ids = text(kind, seed)
        generated = time.perf_counter()
        curvature = calibrate(model, list(ids.split(1)), seed=seed)
        row: dict[str, Any] = {"text": kind, "seed": seed, "generate_seconds": generated - began}
        row["calibrate_seconds"] = time.perf_counter() - generated
        for name, how in (("contest_gptq", CONTEST), ("auto_3_bits", AUTO)):
            made = pipeline.pack(source, None, curvature=curvature, **how)
            row[name] = score(pipeline.dense(artifact.decode(made.data)[0])) - before
        rows.append(row)
        print(row, flush=True)
    facts = {
        "bpb_before": before,
        "tokens": args.tokens,
        "tokens_scored": args.max_tokens or len(tokens) - 1,
        "rows": rows,
    }
    report.write_json(args.out, machine() | facts)


if __name__ == "__main__":
    main()
