"""torch's number of threads: one inside, and the old one everywhere once all are out, in whatever order they go."""

import threading

import pytest
import torch

from pgolf.common.one_thread import one_thread, one_thread_each
from pgolf.common.threads import workers


@pytest.fixture
def three():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def asked_elsewhere() -> int:
    """What a thread that has just begun finds."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_the_number_comes_back_also_after_a_failure(three):
    def fail():
        with one_thread():
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (torch.get_num_threads(), asked_elsewhere()) == (three, three)


def test_it_is_still_one_after_a_guard_inside_another(three):
    with one_thread():
        with one_thread_each() as pool:
            assert set(pool.map(lambda _: torch.get_num_threads(), range(4 * workers()))) == {1}
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == three


@pytest.mark.parametrize("first_out", [0, 1])
@pytest.mark.parametrize("guard", [one_thread, one_thread_each])
def test_threads_that_overlap_leave_the_old_number(three, guard, first_out):
    """The second comes in while the first is inside and finds 1: it must not put that back."""
    inside = [threading.Event(), threading.Event()]
    leave = [threading.Event(), threading.Event()]
    found: dict[int, list[int]] = {0: [], 1: []}

    def work(me: int) -> None:
        with guard():
            inside[me].set()
            leave[me].wait(10)
            found[me].append(torch.get_num_threads())
        found[me].append(torch.get_num_threads())

    both = [threading.Thread(target=work, args=(me,)) for me in (0, 1)]
    for me, thread in enumerate(both):
        thread.start()
        assert inside[me].wait(10)
    for me in (first_out, 1 - first_out):
        leave[me].set()
        both[me].join(10)
    assert found == {0: [1, three], 1: [1, three]}
    assert (torch.get_num_threads(), asked_elsewhere()) == (three, three)
