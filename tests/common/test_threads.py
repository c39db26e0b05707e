import os
import threading

import pytest

from pgolf.common import threads


@pytest.fixture(params=[1, 3])
def cores(request, monkeypatch):
    monkeypatch.setattr(threads, "workers", lambda: request.param)
    return request.param


@pytest.mark.usefixtures("cores")
def test_results_stand_in_the_order_of_the_arguments():
    assert threads.on_threads(lambda a, b: a - b, range(20), range(20, 0, -1)) == [a - (20 - a) for a in range(20)]
    assert threads.on_threads(abs, []) == []


def test_one_core_needs_no_threads_and_more_are_used(cores):
    meet = threading.Barrier(cores, timeout=10)

    def where(_):
        meet.wait()
        return threading.get_ident()

    found = threads.on_threads(where, range(cores))
    assert len(set(found)) == cores
    assert (threading.get_ident() in found) == (cores == 1)


@pytest.mark.usefixtures("cores")
def test_what_a_piece_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        threads.on_threads(lambda n: 1 // n, [2, 1, 0])


@pytest.mark.usefixtures("cores")
def test_arguments_of_different_lengths_are_a_bug():
    with pytest.raises(ValueError, match="shorter"):
        threads.on_threads(max, [1, 2], [3])


def test_workers_are_the_cores_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5} if pid == 0 else set(), raising=False)
    assert threads.workers() == 3


@pytest.mark.parametrize(("counted", "expected"), [(6, 6), (None, 1)])
def test_workers_without_affinities(monkeypatch, counted, expected):
    """As on macOS and Windows."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    assert threads.workers() == expected


@pytest.mark.parametrize(("ranks", "cores", "expected"), [("4", 16, 4), ("3", 8, 2), ("8", 2, 1)])
def test_ranks_of_one_machine_share_its_cores(monkeypatch, ranks, cores, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert threads.workers() == expected
