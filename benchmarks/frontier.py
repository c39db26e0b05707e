"""Every step of `auto` against the contest's packer on golf3m: a sweep with the steps as methods.

    python benchmarks/frontier.py -o DIR [any option of `pgolf sweep`, as --max-tokens 65536]

Uses ../shared/data. frontier_golf3m.json in results/ was made by an earlier script of this name with the same steps and
budgets; what this one writes is results.json of docs/SWEEP.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import GOLF3M
from pgolf.cli import main

STEPS = (
    "auto:trellis=0,two_sided=0,unbias=0",  # scalar rounding, feedback along columns
    "auto:trellis=0,two_sided=0",  # + levels half unbiased
    "auto:trellis=0",  # + feedback on both sides
    "auto",  # + 8-state trellis
    "auto:trellis=32",
    "auto:trellis=256",
    "gptq",  # the contest's codes, our coder
)


def arguments() -> list[str]:
    """Of `pgolf sweep`: golf3m, all steps, 2 to 4 bits a weight; 65,536 calibration tokens."""
    golf = GOLF3M / "golf3m"
    files = {
        "--model": f"{golf / 'model.py'}:GPT",
        "--data": GOLF3M / "text_val_000000.bin",
        "--tokenizer": GOLF3M / "tokenizers" / "text_1024_bpe.model",
        "--calib": GOLF3M / "text_train_000000.bin",
        "--tokens": 65536,
        "--bits": "2,2.5,3,3.5,4",
        "--methods": ",".join(STEPS),
    }
    return ["sweep", str(golf / "ckpt.pt"), *(str(word) for pair in files.items() for word in pair)]


if __name__ == "__main__":
    if not GOLF3M.is_dir() and "--help" not in sys.argv:
        sys.exit(f"{GOLF3M} is not there: run `pgolf sweep` on a checkpoint of your own")
    main([*arguments(), *sys.argv[1:]])
