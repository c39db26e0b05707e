"""Shards of one tokenizer -> shards of another, document by document: train.bin and val.bin for benchmarks/gpu.sh.

python benchmarks/retokenize.py --shared ../shared/data --tokenizer NEW.model --out DIR
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pgolf.data.shards import read_shard, write_shard
from pgolf.data.tokenizers import load_tokenizer

BOS = 1  # in both tokenizers
TOGETHER = 256  # documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    old = load_tokenizer(args.shared / "tokenizers" / "text_1024_bpe.model")
    new = load_tokenizer(args.tokenizer)
    for name in ("val", "train"):
        tokens = np.array(read_shard(args.shared / f"text_{name}_000000.bin"))
        documents = [part[1:].tolist() for part in np.split(tokens, np.flatnonzero(tokens == BOS)) if len(part)]
        rows = []
        for start in range(0, len(documents), TOGETHER):
            texts = old.decode(documents[start : start + TOGETHER])
            rows += [np.array([BOS, *ids], np.uint16) for ids in new.encode(texts)]
        write_shard(args.out / f"{name}.bin", np.concatenate(rows))
        print(f"{name}: {len(tokens):,} tokens -> {sum(map(len, rows)):,}", flush=True)


if __name__ == "__main__":
    main()
