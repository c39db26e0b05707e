"""The ranks of tests/train/test_interrupts.py: `python -m tests.train.ranks_job DATA OUT SIGNAL TO PORTS`, with RANK set.

A run to its end; one in which rank TO gets SIGNAL after step 3; the same gone on with.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from pgolf.train.loop.run_folder import train
from pgolf.train.loop.trainer import StepInfo
from tests.train.toys import SMALL


def main(data: Path, out: Path, number: int, to: int, ports: list[str]) -> None:
    """ports: one for each run: a rank that is ahead must not find the store of the run before."""
    rank = int(os.environ["RANK"])
    (out / f"pid{rank}").write_text(str(os.getpid()))

    def sent(info: StepInfo) -> None:
        if info.step == 3:
            os.kill(int((out / f"pid{to}").read_text()), number)

    os.environ["MASTER_PORT"] = ports[0]
    train("tiny", out / "whole", data=data, overrides=[*SMALL, "steps=8"])
    broken, os.environ["MASTER_PORT"] = False, ports[1]
    try:
        train("tiny", out / "parts", data=data, overrides=[*SMALL, "steps=8"], progress=sent)
    except KeyboardInterrupt:
        broken = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["MASTER_PORT"] = ports[2]
    report = train("tiny", out / "parts", data=data, overrides=[*SMALL, "steps=8"], resume=True)
    (out / f"rank{rank}.json").write_text(json.dumps({"broken": broken, "steps": report.steps}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5].split(","))
