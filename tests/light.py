"""What a light installation can do and what it must refuse: for the suite, which blocks imports, and for tests/wheel.py.

python -m tests.light COMMAND...     runs it in a process without the packages of the extras
python -m tests.light --digest FILE...   prints a hash of what pgolf.load makes of each artifact
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

GOLDEN = Path(__file__).with_name("golden")
ARTIFACT = str(GOLDEN / "1-everything.pgolf")

SCORED = ("--model", "toy.py:Toy", "--data", "val.bin", "--bytes", "bytes.bin")
WORKS = (  # in a folder of helpers.sweep_inputs
    ("inspect", ARTIFACT),
    ("diff", ARTIFACT, ARTIFACT),
    ("unpack", ARTIFACT, "-o", "out.safetensors"),
    ("unpack", ARTIFACT, "-o", "out.pt"),
    ("pack", "ckpt.pt", "--budget", "9kB", "--method", "gptq"),
    ("calibrate", "ckpt.pt", "--model", "toy.py:Toy", "--calib", "random", "--tokens", "256", "-o", "c.safetensors"),
    ("oracle", "run.log"),
    ("triage", "."),
)
REFUSED = {  # command line: the extra that it must name
    ("pack", "ckpt.pt", "-o", "auto.pgolf"): "pack",
    ("pack", "ckpt.pt", "-o", "auto.pgolf", "--method", "rtn", "--set", "up.*=auto"): "pack",
    ("pack", "ckpt.pt", "-o", "auto.pgolf", "--method", "rtn", "--code", "toy.py"): "pack",
    ("estimate", "ckpt.pt", "--budget", "9kB"): "pack",
    ("export", ARTIFACT, "--script", "toy.py", "-o", "submission"): "pack",
    ("audit", ".", *SCORED): "pack",
    ("eval", "ckpt.pt", *SCORED): "pack",
    ("eval", "ckpt.pt", *SCORED[:4], "--tokenizer", "t.model"): "pack,train",
    ("sweep", "ckpt.pt", *SCORED, "--bits", "4", "-o", "s"): "pack,train",
    ("tokenize", "toy.py", "-o", "data"): "train",
    ("train", "-o", "run"): "train",
    ("demo", "-o", "demo"): "pack,train",
}


def digest(path: str | Path) -> str:
    """Of every name, dtype, shape and byte that `pgolf.load` gives."""
    import torch

    import pgolf

    found = hashlib.sha256()
    for name, tensor in pgolf.load(path).items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def main(words: list[str]) -> None:
    """See above."""
    if words[0] == "--digest":
        print(*map(digest, words[1:]), sep="\n")
        return
    from pgolf.cli import main as pgolf
    from pgolf.common.extras import EXTRA_OF

    sys.modules.update(dict.fromkeys(EXTRA_OF))  # None: importing it fails
    pgolf(words)


if __name__ == "__main__":
    main(sys.argv[1:])
