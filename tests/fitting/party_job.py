"""What the ranks of tests/fitting/test_party.py run: `python -m tests.fitting.party_job FOLDER MODE RANK WORLD PORT`."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import distributed

import pgolf
from pgolf.errors import PgolfError
from pgolf.fitting.closed import tune, work
from pgolf.fitting.closed.student import Student
from pgolf.fitting.trial import Job
from tests.fitting.test_closed_loop import BUDGET, Banked, text

TOKENS = 30_000


def packed(path, curvature, model=None, **more):
    how = {"budget": BUDGET, "curvature": curvature, "text": text(400), "tune": TOKENS}
    return pgolf.pack(model or Banked(), path, **(how | more))


class Watched:
    """What this rank did: sequences of each pass with gradients, matrices that it rounded; and where it is to fail."""

    def __init__(self):
        self.rows, self.units, self.fails_at, self.error = [], [], None, RuntimeError("out of luck")
        self._slopes, self._round = Student.slopes, Job.round

        def slopes(student, ids, names):
            return self.slopes(student, ids, names)

        def rounded(job, name, *what):
            self.units.append(name)
            return self._round(job, name, *what)

        Student.slopes, Job.round = slopes, rounded

    def slopes(self, student, ids, names):
        self.rows.append(len(ids))
        if self.fails_at is not None and len(self.rows) >= self.fails_at:
            if self.error == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise self.error
        return self._slopes(student, ids, names)

    def anew(self, fails_at=None, error=None):
        self.__dict__ |= {"rows": [], "units": [], "fails_at": fails_at, "error": error or RuntimeError("out of luck")}


def facts(report):
    told = report.tuned
    kept = {"kl": told.kl, "kl_before": told.kl_before, "helped": told.helped, "notes": told.notes}
    return kept | {"tokens": told.tokens, "bytes": report.artifact_bytes, "sum": sum(report.data)}


def failure(work):
    try:
        work()
    except (PgolfError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def everything(folder, rank, known, seen):
    """One scenario after the other, as the ranks of a notebook would."""
    found = {}
    seen.anew()
    found["plain"] = facts(packed(folder / "m.pgolf", known))
    found["rows"], found["rounded"] = seen.rows[1:4], len(seen.units)
    seen.anew()
    found["late"] = facts(packed(folder / "m.pgolf", known, tune="500M", deadline=0.01))
    seen.anew(fails_at=5 if rank else None)
    found["one fails"] = failure(lambda: packed(folder / "m.pgolf", known))
    work.EVERY = 0.0
    seen.anew(fails_at=None if rank else 28)
    found["broken"] = failure(lambda: packed(folder / "m.pgolf", known))
    seen.anew()
    found["gone on"] = facts(packed(folder / "m.pgolf", known))
    rate, tune.RATE, tune.SLOWER = tune.RATE, 30.0, 1e-6
    found["wild"] = facts(packed(folder / "m.pgolf", known))
    tune.RATE = rate
    other = Banked()
    if rank:
        with torch.no_grad():
            other.out.weight.mul_(2)
    seen.anew()
    found["other weights"] = facts(packed(folder / "m.pgolf", known, other))
    found["other rows"] = seen.rows[1:4]
    return found


def main(folder: Path, mode: str, rank: int, world: int, port: str) -> None:
    known = pgolf.calibrate(Banked(), text(seed=9))  # on every rank the same, however many there are
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    seen = Watched()
    if mode == "killed":
        seen.anew(fails_at=4 if rank else None, error="kill")
        packed(folder / "m.pgolf", known)
    (folder / f"rank{rank}.json").write_text(json.dumps(everything(folder, rank, known, seen)))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
