"""Peak memory and seconds of `pgolf pack` on random models of Qwen2-0.5B's shapes, 3M to 0.5B weights, a process for each.

    python benchmarks/memory.py [--sizes 3M,36M,150M,500M] [--calib none,random] [--tree before=DIR] [--out RESULT.json]

A point is a folder that transformers wrote (bf16 safetensors, tied embedding), packed to --bits a weight by the command
that a user types. Told are the peak of all resident memory, and of its anonymous part: pages of files that are mapped (the
checkpoint, what lies in the work folder) count as resident while memory is plenty and are taken back when it is short.
Points are added to those in RESULT.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import RESULTS, machine

HERE = Path(__file__).resolve().parents[1]

SHAPES = {  # hidden, intermediate, layers, heads, heads of keys, vocabulary
    "3M": (128, 704, 6, 2, 1, 8192),
    "36M": (256, 1408, 15, 4, 1, 65536),
    "150M": (512, 2816, 15, 8, 2, 151936),
    "500M": (896, 4864, 24, 14, 2, 151936),
}
TOKENS, SEQUENCE = 4096, 256  # of calibration; logits of a sequence over 151,936 pieces take 32 bytes each
BLINK = 0.01  # seconds between two looks at a process
MODEL = """
import sys, torch, transformers
out, hidden, inner, layers, heads, keys, words = sys.argv[1], *map(int, sys.argv[2:])
torch.manual_seed(0)
config = transformers.Qwen2Config(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
    num_attention_heads=heads, num_key_value_heads=keys, vocab_size=words, tie_word_embeddings=True)
model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
model.save_pretrained(out)
print(sum(p.numel() for p in model.parameters()))
"""


def folder_of(size: str, place: Path) -> tuple[Path, int]:
    """A folder of random weights, written in a process of its own, and how many they are."""
    out = place / size
    words = [sys.executable, "-c", MODEL, str(out), *map(str, SHAPES[size])]
    made = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return out, int(made.stdout.split()[-1])


def watched(words: list[str], tree: Path) -> dict[str, Any]:
    """Run a command; its report, seconds, processor seconds, and peaks of its memory in bytes."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    began, anonymous = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([sys.executable, *words], cwd=tree, env=environment, stdout=out)
        ended, status, used = os.wait4(process.pid, os.WNOHANG)
        while not ended:
            anonymous = max(anonymous, _anonymous(process.pid))
            time.sleep(BLINK)
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
        if status:
            raise SystemExit(f"{' '.join(words)} ended with status {status}")
        out.seek(0)
        report = json.load(out)
    return {
        "seconds": time.perf_counter() - began,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_resident": used.ru_maxrss * 1024,
        "peak_anonymous": anonymous,
        "artifact_bytes": report["artifact_bytes"],
        "bits_per_weight": report["bits_per_weight"],
    }


def _anonymous(pid: int) -> int:
    """Bytes of a process that no file holds."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def point(size: str, calib: str, tree: Path, place: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One row: what it takes to pack a model of a size."""
    folder, weights = folder_of(size, place)
    words = ["-m", "pgolf", "pack", str(folder), "--calib", calib, "--tokens", str(options.tokens)]
    words += ["--budget", str(round(weights * options.bits / 8))] if options.bits else []
    words += ["--seq-len", str(SEQUENCE)] if calib != "none" else []
    more = ["-o", str(place / "made.pgolf"), "--force", "--json", *options.more.split()]
    found = watched([*words, *more], tree)
    return {
        "size": size,
        "weights": weights,
        "calib": calib,
        "tokens": options.tokens if calib != "none" else 0,
        "bits": options.bits,
        "more": options.more,
        **found,
        "seconds_per_million": 1e6 * found["seconds"] / weights,
        "resident_over_bf16": found["peak_resident"] / (2 * weights),
        "anonymous_over_bf16": found["peak_anonymous"] / (2 * weights),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SHAPES))
    parser.add_argument("--calib", default="none,random", help="none, random")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument(
        "--bits", type=float, default=3.0, help="a weight, as a budget; 0: one position of the knob, no search"
    )
    parser.add_argument("--more", default="", help="further options of pgolf pack, in one word")
    parser.add_argument("--tree", metavar="NAME=DIR", default=f"now={HERE}", help="the checkout that packs")
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json")
    options = parser.parse_args()
    name, _, root = options.tree.partition("=")
    points = json.loads(options.out.read_text())["points"] if options.out.exists() else []
    with tempfile.TemporaryDirectory() as place:
        for size in options.sizes.split(","):
            for calib in options.calib.split(","):
                row = {"tree": name} | point(size, calib, Path(root).resolve(), Path(place), options)
                same = ("tree", "size", "calib", "tokens", "bits", "more")
                points = [p for p in points if any(p.get(key) != row[key] for key in same)] + [row]
                print(json.dumps(row), flush=True)
                from pgolf import report

                report.write_json(options.out, machine() | {"points": points})


if __name__ == "__main__":
    main()
