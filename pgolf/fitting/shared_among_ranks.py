"""A pack's rounding shared out among the ranks of a job: rank 0 leads, the others round what falls to them.

Every rank makes its own job from what it was given, and works along where that is rank 0's to the bit; one that was given other
weights or another curvature only waits. A matrix is one rank's from the first trial to the last, since its factored curvature
stays there. Rank 0 alone codes, searches, measures and writes, so the artifact is one rank's. What the closed loop says to the
others is passed on: see closed/party.py.

All talk is rank 0's word and everybody's answer, in the patient group; no rank calls anything else meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import distributed

from pgolf.common import ranks
from pgolf.common.progress import silent
from pgolf.fitting.resume import key_of_job
from pgolf.fitting.trial import Job
from pgolf.packer.format.artifact import Entry
from pgolf.report import Report

ROUND, BITS, CLOSED, END = "round", "bits", "closed", "end"

Helper = Callable[..., Any]
"""What answers the words of a closed loop: (word, arguments of it) → the answer."""


def led(make: Callable[[], Job], work: Callable[[Job], Report], helper_of: Callable[[Job | None], Helper]) -> Report:
    """What `work` returns of rank 0's job, on every rank; what it raises there is raised on every rank.

    make: the job, on every rank. A rank where that fails only waits. helper_of: who helps in a closed loop on another rank, by
    the job there, None where it is not rank 0's.
    """
    if not ranks.grouped():
        return work(make())
    group = ranks.patient_group()
    if group is None:  # no gloo: nothing to wait in but the job's own group
        return ranks.on_first(lambda: work(make()))
    job, error = ranks.tried(make)
    keys: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(keys, None if job is None else key_of_job(job), group=group)
    if ranks.rank():
        mine = job if keys[0] == keys[ranks.rank()] else None
        return _following(mine, helper_of(mine), group)
    if job is None:
        _tell((END, None, ranks.told(error)), group)
        assert error is not None
        raise error
    crew = Led(job, _parts(job, [key == keys[0] for key in keys]), group)
    report, error = ranks.tried(lambda: work(replace(job, crew=crew)))
    if not crew.torn:  # else somebody waits in the middle of an answer, and this process's end tells him
        _tell((END, report, ranks.told(error)), group)
    if error is not None:
        raise error
    assert report is not None
    return report


@dataclass
class Led:
    """Rank 0's side: who rounds what of a job. torn: an answer was broken off, and nobody can be told anything any more."""

    job: Job
    parts: Sequence[Sequence[str]]
    group: Any
    torn: bool = False

    def knows(self, job: Job) -> bool:
        """Whether the others hold this job: not one whose plans, prices or weights were changed since, or whose time is short."""
        ours = self.job
        same = job.plans is ours.plans and job.curvatures is ours.curvatures and job.source is ours.source
        return same and job.stacks is ours.stacks and job.until == math.inf and not self.torn

    def rounded(self, job: Job, step: float) -> dict[str, Entry]:
        """The entries of all tensors at one position of the knob."""
        return self._answers(job, ROUND, step)

    def expected_bits(self, job: Job, step: float) -> dict[str, float]:
        """What the codes of each leader would take, in the order of the leaders: sums depend on it."""
        found = self._answers(job, BITS, step)
        return {name: found[name] for name in job.leaders}

    def prices(self, job: Job) -> bool:
        """Whether the others hold the weights of this job and their prices, whatever its plans."""
        return job.source is self.job.source and job.curvatures is self.job.curvatures

    def everybody(self, word: str, *arguments: Any, mine: Callable[[], Any]) -> list[Any]:
        """What each rank answers to a word of the closed loop, this one by `mine`.

        An interrupt here ends this process, and so the others, which may wait for it in a sum.
        """
        return self._asked((CLOSED, word, arguments), mine, Exception)

    def _answers(self, job: Job, what: str, step: float) -> dict[str, Any]:
        found: dict[str, Any] = {}
        answers = self._asked((what, step, self.parts), lambda: _answer(job, what, step, self.parts[0]), BaseException)
        for made, damping, foreseen in answers:
            found |= made
            job.damping.update(damping)
            job.foreseen.update(foreseen)
        return found

    def _asked(self, word: tuple[Any, ...], mine: Callable[[], Any], kinds: type[BaseException]) -> list[Any]:
        """What each rank answers, after all have. kinds: of what `mine` may raise without tearing the talk."""
        self.torn = True
        _tell(word, self.group)
        own = ranks.tried(mine, kinds)
        answers: list[Any] = [None] * len(self.parts)
        distributed.gather_object((None, None), answers, dst=0, group=self.group)
        self.torn = False
        answers[0] = own
        for rank, (_, error) in enumerate(answers):
            if error is not None:
                raise error if rank == 0 else type(error)(f"rank {rank}: {error}")
        return [answer for answer, _ in answers]


def _following(job: Job | None, helper: Helper, group: Any) -> Report:
    """The other ranks' side: answer until rank 0 ends."""
    quiet = None if job is None else replace(job, progress=silent)
    while True:
        word: list[Any] = [None]
        distributed.broadcast_object_list(word, src=0, group=group)
        what, told, more = word[0]
        if what == END:
            if more is not None:
                raise ranks.relayed(more)
            return told  # type: ignore[no-any-return]  # rank 0's report
        if what == CLOSED:
            answer = ranks.tried(partial(helper, told, *more), Exception)
            distributed.gather_object((answer[0], ranks.told(answer[1])), None, dst=0, group=group)
            continue
        part = more[ranks.rank()] if quiet is not None else ()
        made, error = ranks.tried(partial(_answer, quiet, what, told, part)) if quiet else (({}, {}, {}), None)
        distributed.gather_object((made, ranks.told(error)), None, dst=0, group=group)


def _answer(job: Job, what: str, step: float, part: Sequence[str]) -> tuple[dict[str, Any], dict[str, float], Any]:
    """(what was asked for, by tensor; its damping; the bits foreseen of it), of one rank's part."""
    if what == ROUND:
        made: dict[str, Any] = dict(job.rounded(part, step))
    else:
        made = dict(job.expected_bits_of([name for name in part if job.plans[name].settings is not None], step))
    names = [name for leader in part for name in job.together(leader)]
    return (
        made,
        {name: job.damping[name] for name in names if name in job.damping},
        {name: job.foreseen[name] for name in names if name in job.foreseen},
    )


def _tell(word: tuple[Any, ...], group: Any) -> None:
    distributed.broadcast_object_list([word], src=0, group=group)


def _parts(job: Job, able: Sequence[bool]) -> list[list[str]]:
    """Which tensors each rank rounds: the largest first, each to whom least has fallen so far; what is kept is rank 0's."""
    parts: list[list[str]] = [[] for _ in able]
    loads = [0 if can else math.inf for can in able]
    sizes = {name: job.weights(job.together(name)) for name in job.leaders}
    for name in sorted(sizes, key=lambda each: (-sizes[each], each)):
        rank = loads.index(min(loads))
        parts[rank].append(name)
        loads[rank] += sizes[name]
    parts[0] += job.kept
    return parts
