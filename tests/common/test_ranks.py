import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import pgolf
from pgolf.common import ranks
from pgolf.errors import PgolfError
from tests.common.ranks_job import calm_model
from tests.helpers import free_port, generator, toy_state

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600  # seconds: where others work on the machine it takes minutes


def two_ranks(folder, mode="plain", ranks=2, job="tests.common.ranks_job"):
    """What each of two gloo processes, or more, of tests/common/ranks_job.py, or of another job, reports."""
    codes, errors = ended(folder, mode, ranks, job)
    assert codes == [0] * ranks, errors
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]


def ended(folder, mode, ranks=2, job="tests.common.ranks_job"):
    """(exit codes, what they said on stderr) of the processes."""
    port = free_port()
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", job, str(folder), mode, str(rank), str(ranks), str(port)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    errors = [job.communicate(timeout=PATIENCE)[1] for job in jobs]
    return [job.returncode for job in jobs], errors


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    return folder, two_ranks(folder)


def test_two_ranks_pack_once_and_load_the_same_bits(both):
    folder, (first, second) = both
    assert first == second
    assert first["bytes"] == (folder / "m.pgolf").stat().st_size <= 9000
    assert [p.name for p in folder.iterdir() if p.suffix not in {".json"}] == ["m.pgolf"]


def test_curvature_is_the_sum_over_the_ranks(both):
    """Tolerance: the same float32 sums in another order."""
    _, (first, _) = both
    ids = torch.randint(0, 64, (8, 32), generator=generator(7))
    assert first["tokens"] == 256
    parts = [pgolf.calibrate(calm_model(), [ids[r::2]], seed=r) for r in range(2)]
    merged = parts[0].merge(parts[1:])
    assert first["trace"] == pytest.approx(float(merged.get("up.weight")[0].H.trace()), rel=1e-5)


@pytest.mark.parametrize(
    ("mode", "errors", "says"),
    [
        ("too small", ("BudgetError", "BudgetError"), "does not fit"),
        ("bad tokens on rank 1", ("CurvatureError", "CurvatureError"), "outside the model's vocabulary"),
    ],
)
def test_an_error_reaches_every_rank(tmp_path, mode, errors, says):
    found = two_ranks(tmp_path, mode)
    assert tuple(f["error"] for f in found) == errors
    assert all(says in f["says"] and "\n" not in f["says"] for f in found)
    assert not (tmp_path / "m.pgolf").exists()


def test_a_rank_without_text_takes_the_others(tmp_path):
    first, second = two_ranks(tmp_path, "nothing on rank 1")
    assert first == second
    assert first["tokens"] == 128


def test_a_pack_may_take_longer_than_the_jobs_groups_wait(tmp_path, both):
    assert two_ranks(tmp_path, "slow") == both[1]


def test_a_rank_that_is_killed_leaves_nobody_waiting(tmp_path):
    began = time.monotonic()
    codes, errors = ended(tmp_path, "killed")
    assert codes[0] == -signal.SIGKILL
    assert codes[1] != 0, errors
    assert time.monotonic() - began < 60
    assert not list(tmp_path.glob("*.pgolf"))


def test_alone_nothing_is_exchanged():
    assert not ranks.grouped()
    assert ranks.rank() == 0
    assert ranks.on_first(lambda: 3) == 3
    assert ranks.from_all(lambda: 3) == [3]
    with pytest.raises(PgolfError, match="mine"):
        ranks.on_first(lambda: (_ for _ in ()).throw(PgolfError("mine")))


PACK = """
import sys, torch, pgolf
from tests.helpers import toy_state
print("ready", flush=True)
while True:
    pgolf.pack(toy_state(seed=1, width=256), sys.argv[1], method="sdclip")
"""


def test_a_kill_while_packing_leaves_the_old_file_or_the_whole_new_one(tmp_path):
    path = tmp_path / "m.pgolf"
    old = pgolf.pack(toy_state(), path, method="sdclip").data
    new = pgolf.pack(toy_state(seed=1, width=256), None, method="sdclip").data
    seen = set()
    for wait in (0.0, 0.05, 0.4):
        path.write_bytes(old)
        job = subprocess.Popen([sys.executable, "-c", PACK, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
        job.stdout.readline()
        time.sleep(wait)
        job.kill()
        job.wait()
        job.stdout.close()
        assert path.read_bytes() in (old, new)
        seen.add(path.read_bytes() == new)
    assert False in seen
