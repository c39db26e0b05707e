"""A pack whose rounding is shared out is the pack of one rank."""

import math
from dataclasses import replace

import pytest

import pgolf
from pgolf.fitting.inputs import job_of
from pgolf.fitting.shared_among_ranks import Led, _parts
from pgolf.quant.curvature.store import Curvature
from tests.common.ranks_job import calm_model
from tests.common.test_ranks import two_ranks
from tests.helpers import toy_state


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_round_each_their_own_and_write_the_bytes_of_one(tmp_path, ranks):
    rounded = [each["rounded"] for each in two_ranks(tmp_path, "shared", ranks)]
    names = [name for each in rounded for name in each]
    assert sum(map(bool, rounded)) >= min(ranks, 3)  # of three matrices and a vector
    assert len(names) == len({*names})
    known = Curvature.load(tmp_path / "shared.curv")
    alone = pgolf.pack(calm_model(), None, budget="9kB", curvature=known)
    assert (tmp_path / "m.pgolf").read_bytes() == alone.data


def test_a_rank_with_other_weights_spoils_nothing(tmp_path):
    (tmp_path / "same").mkdir()
    (tmp_path / "other").mkdir()
    two_ranks(tmp_path / "same", "shared")
    two_ranks(tmp_path / "other", "other weights")
    assert (tmp_path / "other" / "m.pgolf").read_bytes() == (tmp_path / "same" / "m.pgolf").read_bytes()


def test_every_tensor_is_one_ranks():
    job = job_of(toy_state(), search=True)
    for able in ([True], [True] * 2, [True, False, True], [True] * 40):
        parts = _parts(job, able)
        assert len(parts) == len(able)
        assert sorted(name for part in parts for name in part) == sorted({*job.leaders, *job.kept})
        assert not any(part for part, can in zip(parts, able, strict=True) if not can)


def test_the_others_know_no_job_that_was_changed_since():
    job = job_of(toy_state(), search=True)
    crew = Led(job, [[]], None)
    assert crew.knows(replace(job, crew=crew))
    assert not crew.knows(replace(job, until=1.0))
    assert not crew.knows(job.only(job.leaders))
    assert not crew.knows(replace(job, curvatures=dict(job.curvatures)))
    assert job.until == math.inf
