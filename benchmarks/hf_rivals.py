"""Bytes against KL on a Hugging Face folder: pgolf beside GGUF's formats and, where it is installed, HQQ.

    python benchmarks/hf_rivals.py DIR --calib train.txt --data val.txt [--json OUT.json]

Every rival quantizes all matrices, embedding and head among them; vectors stay float32 (GGUF) or float16 (HQQ). Its bytes
are those of a file that holds nothing else, as it is and under zstd -19; pgolf packs into each of the latter, so that a row
compares two artifacts of one size. No rival here sees calibration text. The KL is that of `pgolf eval --against`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pgolf
from benchmarks.common import machine
from benchmarks.rival_quantizers import apart, quantized, rivals, together, versions
from pgolf.commands.models import calibrate_model, read_checkpoint
from pgolf.commands.shared import CalibrationOptions, ModelOptions
from pgolf.models import transformers_model
from pgolf.models.logits import logits_of
from pgolf.scoring import against, evaluation

TOKENS = 32768  # of calibration
USER = ModelOptions(None, None)
PACKAGES = ("gguf", "transformers", "zstandard", "hqq")


@dataclass(frozen=True)
class Row:
    """A rival, its bytes raw and under zstd, its KL, and pgolf's at the latter size."""

    rival: str
    raw_bytes: int
    zstd_bytes: int
    kl: float
    kl_error: float
    same_top: float
    pgolf_bytes: int
    pgolf_kl: float
    pgolf_kl_error: float
    pgolf_same_top: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--max-tokens", type=int, default=40_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    source = read_checkpoint(options.folder, USER)
    text = evaluation.read_text(options.data, tokenizer=options.folder, max_tokens=options.max_tokens)
    before = transformers_model.build(source.config, source.state_dict())
    changed = transformers_model.build(source.config, source.state_dict())
    length = min(1024, int((source.config or {}).get("max_position_embeddings", 512)))

    def kl_of(state: dict[str, Tensor]) -> Any:
        changed.load_state_dict({name: tensor.to(before.state_dict()[name].dtype) for name, tensor in state.items()})
        (found,) = against.figures(
            logits_of(before), [logits_of(changed)], text.scored, seq_len=length, starts=np.array([0])
        )
        return found.divergence()

    calibration = CalibrationOptions((options.calib,), TOKENS, 0, length)
    began = time.perf_counter()
    curvature = calibrate_model(source, options.folder, USER, calibration, lambda *_: None)
    print(f"calibrated in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    rows = []
    for name, quantize, vectors in rivals():
        parts, rest, found = quantized(apart(source.tensors), quantize, vectors)
        data = b"".join([*(part.packed for part in parts), rest])
        size = len(zstandard.ZstdCompressor(level=19).compress(data))
        theirs = kl_of(replace(source, tensors=together(found, source.tensors)).state_dict())
        with tempfile.TemporaryDirectory() as folder:
            made = pgolf.pack(source, Path(folder) / "m.pgolf", budget=size, curvature=curvature)
            ours = kl_of(pgolf.load(Path(folder) / "m.pgolf"))
        rows.append(
            Row(
                name, len(data), size, theirs.kl, theirs.kl_error, theirs.same_top,
                made.artifact_bytes, ours.kl, ours.kl_error, ours.same_top,
            )
        )  # fmt: skip
        print(json.dumps(asdict(rows[-1])), file=sys.stderr, flush=True)
    facts = {
        "machine": machine() | versions(PACKAGES),
        "model": {
            "architectures": (source.config or {}).get("architectures"),
            "weights": sum(t.numel() for t in source.tensors.values()),
        },
        "tokens": len(text.scored) - 1,
        "context": length,
        "rows": [asdict(row) for row in rows],
    }
    if options.json:
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    print("| rival | bytes | zstd -19 | KL | same top | pgolf, bytes | KL | same top | KL ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r.rival} | {r.raw_bytes:,} | {r.zstd_bytes:,} | {r.kl:.2e} | {r.same_top:.2%} | {r.pgolf_bytes:,} "
            f"| {r.pgolf_kl:.2e} | {r.pgolf_same_top:.2%} | {r.pgolf_kl / r.kl:.3f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
