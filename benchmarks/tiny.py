"""`pgolf train --preset tiny` on the standard library's text: seconds, and held-out BPB beside general compressors.

    python benchmarks/tiny.py [--out RESULT.json]

The compressors see the held-out files alone, one after the other in one stream, at their strongest setting; the model
has learned from the others. Not the same task, but a scale for the figure.
"""

from __future__ import annotations

import argparse
import lzma
import sys
import tempfile
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import RESULTS, machine
from pgolf import report
from pgolf.train.loop.demo_model import split_documents
from pgolf.train.loop.run_folder import train


def compressors() -> dict[str, float]:
    """Bits per byte of the held-out text under zlib and xz at level 9."""
    text = "".join(text for _, text in split_documents()[1]).encode()
    sizes = {"zlib -9": len(zlib.compress(text, 9)), "xz -9": len(lzma.compress(text, preset=9))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "tiny.json")
    args = parser.parse_args()
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        made = train("tiny", Path(folder) / "run")
    seconds = {"train_seconds": made.seconds, "cpu_seconds_in_all": time.process_time() - began}
    assert made.score is not None
    facts = {"parameters": made.parameters, "tokens": made.tokens, "bpb": made.score.bpb, **seconds}
    report.write_json(args.out, machine() | facts | {"bits_per_byte": compressors()})


if __name__ == "__main__":
    main()
