"""A closed loop that ranks share: each takes its part, all end alike, and what comes of it is as good as one process's."""

import signal

import pytest

import pgolf
from pgolf.fitting.closed.party import Card, _backend, _parts
from pgolf.fitting.closed.units import Unit
from pgolf.fitting.inputs import job_of
from tests.common.test_ranks import ended, two_ranks
from tests.fitting.party_job import packed
from tests.fitting.test_closed_loop import Banked, text
from tests.helpers import toy_state

JOB = "tests.fitting.party_job"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("party")
    return folder, two_ranks(folder, "all", job=JOB)


@pytest.fixture(scope="module")
def alone():
    return packed(None, pgolf.calibrate(Banked(), text(seed=9)))


def test_each_takes_half_of_the_sequences_and_of_the_matrices(both):
    _, (first, second) = both
    assert first["rows"] == second["rows"] == [16, 16, 16]
    assert second["rounded"] >= 2
    assert first["plain"] == second["plain"]


def test_it_is_as_good_as_one_process(both, alone):
    """Tolerance: gradients are the same sums in another order, and codes that lie on an edge fall to either side."""
    made = both[1][0]["plain"]
    assert made["helped"]
    assert made["tokens"] == alone.tuned.tokens
    assert made["kl_before"] == pytest.approx(alone.tuned.kl_before, rel=1e-3)
    assert made["kl"] == pytest.approx(alone.tuned.kl, rel=0.05)
    assert made["kl"] < 0.9 * made["kl_before"]


def test_where_one_fails_all_say_which(both):
    _, (first, second) = both
    assert first["one fails"] == second["one fails"]
    assert first["one fails"].startswith("PgolfError: rank 1: another rank failed (RuntimeError: out of luck")


def test_after_a_break_it_goes_on_to_the_same_bytes(both):
    folder, found = both
    for each in found:
        assert "out of luck" in each["broken"]
        assert each["gone on"] == each["plain"] | {"notes": "gone on with after a break"}
    assert [path.name for path in folder.iterdir() if path.suffix != ".json"] == ["m.pgolf"]


def test_without_time_nobody_steps(both):
    for each in both[1]:
        assert not each["late"]["helped"]
        assert "too little time" in each["late"]["notes"]


def test_steps_that_diverge_do_so_on_all(both):
    for each in both[1]:
        assert each["wild"]["notes"].startswith("steps at a rate of 30 diverged")


def test_a_rank_with_other_weights_only_waits(both, alone):
    _, (first, second) = both
    assert first["other weights"] == second["other weights"]
    assert first["other weights"]["sum"] == sum(alone.data)
    assert first["other rows"] == [32, 32, 32]
    assert second["other rows"] == []


def test_a_rank_that_is_killed_in_a_step_ends_the_other(tmp_path):
    codes, errors = ended(tmp_path, "killed", job=JOB)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0, errors
    assert not list(tmp_path.glob("*.pgolf"))


def test_gradients_go_over_nccl_only_where_each_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    here, there = Card("", "a", "cuda:0"), Card("", "b", "cuda:0")
    assert _backend([here, there]) == "nccl"
    assert _backend([here, here]) == "gloo"
    assert _backend([here, Card("", "c", "cpu")]) == "gloo"


def test_units_are_shared_out_by_their_weights():
    job = job_of(toy_state(), search=True)
    units = [Unit(name, 0) for name in job.quantized]
    for able in ([0], [0, 2], [0, 1, 2, 3, 4]):
        parts = _parts(job, units, able)
        assert len(parts) == len(able)
        assert sorted((unit for part in parts for unit in part), key=units.index) == units
        assert sum(map(bool, parts)) == min(len(able), len(units))
