"""`--tune`: whether the closed loop is run, for how long, and which of its artifacts and the open loop's is kept."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import pgolf
from pgolf.common.sizes import Size
from pgolf.errors import BudgetError, UsageError
from pgolf.fitting.closed.loop import Loop, Made
from pgolf.fitting.closed.party import Alone, Party, joined
from pgolf.fitting.closed.repair import Diverged, Pace, Repair
from pgolf.fitting.closed.student import Student
from pgolf.fitting.closed.units import Unit, grouped, may_move, members, slices_of, units_in_order
from pgolf.fitting.closed.work import Work, path_for
from pgolf.fitting.goal import Goal
from pgolf.fitting.live import Live
from pgolf.fitting.measure import put, tried
from pgolf.fitting.plan import TensorPlan
from pgolf.fitting.trial import Job, Trial
from pgolf.fitting.work import key_of
from pgolf.models.logits import device_of
from pgolf.quant.curvature.uses import in_order
from pgolf.report.pack_report import Tuned
from pgolf.scoring.divergence import Divergence

RATE, USUAL_SPREAD = 1e-4, 0.085  # Adam's rate, found on matrices of this root mean square
BATCH = 1024  # tokens a step
SLOWER = 0.3  # of the rate, after steps that diverged
USUAL = 1_500_000  # tokens where a model on a GPU is at hand and nobody said how many
BYTES_PER_WEIGHT = 24  # of the student, its gradients, Adam's sums and what comes and goes, in float32
MOST_GROUPS, LEAST_STEPS = 20, 12  # groups; steps in each
AFTER = 0.08  # share of the steps that come after the last group
LATELY = 0.1  # weight of a step's KL in the one that is shown
ROUNDINGS = 3.0  # how often a closed loop rounds and codes what the open one does once
CAUTION = 1.2  # other work may share the machine


@dataclass(frozen=True)
class Limits:
    """tokens: of text to see; until: time.perf_counter() at which the artifact must be there; seed: of the text's order.
    artifact: the file that is made; beside it is kept what is done so far, unless it must be there at some time. asked:
    whether somebody named the tokens."""

    tokens: int
    until: float = math.inf
    seed: int = 0
    artifact: Path | None = None
    asked: bool = True


def tokens_of(text: Size | None) -> int | None:
    """ "1.5M" tokens -> 1500000, "500k", "4M", plain numbers; None for None and "off". Raises UsageError."""
    if text is None or (isinstance(text, str) and text.strip().lower() in {"off", "0"}):
        return None
    words = str(text).strip().lower().replace("_", "").replace(",", "")
    factor = {"k": 1e3, "m": 1e6, "b": 1e9}.get(words[-1:], 1.0)
    try:
        count = float(words.rstrip("kmb") if factor != 1.0 else words) * factor
    except ValueError:
        count = -1.0
    if not 1 <= count <= 1e12:
        raise UsageError(f"--tune {text}: give a number of tokens like 500k or 4M, or off")
    return round(count)


def usual(live: Live | None) -> int | None:
    """Tokens to tune on where nobody said: a number where the model lies on a GPU that has room for the steps, and there is
    text; else None."""
    if live is None or live.text is None or (device := device_of(live.model)).type != "cuda":
        return None
    weights = sum(p.numel() for p in live.model.parameters())
    return USUAL if BYTES_PER_WEIGHT * weights < torch.cuda.mem_get_info(device)[0] else None


def tuned(
    job: Job,
    opened: Trial,
    goal: Goal,
    student: Student,
    live: Live,
    limits: Limits,
    foreseen: float,
    before: Divergence,
) -> tuple[Made, Divergence, Tuned]:
    """The better of the open loop's artifact and the closed loop's, by the KL on the text held back, that, and what was seen.

    opened: the open loop's trial; before: what it does on the text held back; foreseen: seconds that its last rounding and
    coding took. Leaves the weights of what is kept in the student.
    """
    job = _settled(job, opened)
    best, best_found, notes, seen, work = Made(opened, job), before, list[str](), 0, None
    if not job.quantized:
        notes.append("no tensor is quantized")
    party: Party = joined(job, student) if job.quantized else Alone()
    for rate in (RATE, SLOWER * RATE) if job.quantized else ():
        student.reset({name: job.source.tensors[name] for name in student.places})
        work = _work(job, opened, goal, live, limits, rate, party.size)
        try:
            made, seen = _closed(job, opened, goal, student, live, limits, before.kl, rate, foreseen, work, party)
        except Diverged:
            notes.append(f"steps at a rate of {rate:g} diverged")
            continue
        except BudgetError as error:
            notes.append(str(error))
            made = []
        for each in made:
            found = tried(job, each.trial, student, live)
            best, best_found = (each, found) if found.kl < best_found.kl else (best, best_found)
        break
    party.leave()
    put(best.trial, student)
    if best.trial is opened and not notes:
        notes.append("too little time" if not seen else "it did not help on the text held back")
    if work and work.gone_on:
        notes.append("gone on with after a break")
    helped = best.trial is not opened
    return best, best_found, Tuned(seen, limits.seed, before.kl, best_found.kl, helped, "; ".join(notes))


def _settled(job: Job, opened: Trial) -> Job:
    """The job with what the open loop kept after all (for its bytes, or its dtype's range) kept for good, the rest coded."""
    plans = dict(job.plans)
    for name in job.quantized:
        entry, coded = opened.entries[name], replace(job.plans[name], market=False)
        plans[name] = coded if entry.planes else TensorPlan(None, entry.note, entry.stored)
    return replace(job, plans=plans)


def _closed(
    job: Job,
    opened: Trial,
    goal: Goal,
    student: Student,
    live: Live,
    limits: Limits,
    worst: float,
    rate: float,
    rounding: float,
    work: Work,
    party: Party,
) -> tuple[list[Made], int]:
    """One run of the loop: its artifacts, and how many tokens it saw; neither where there is no time for any."""
    assert live.text is not None
    batch = max(BATCH, party.size * live.text.shape[1])  # a sequence for each
    pace = Pace(rate * _spread(job, student), batch=batch, seed=limits.seed)
    seen, lately = 0, math.nan

    def advance(tokens: int, kl: float) -> None:
        nonlocal seen, lately
        seen, lately = tokens, kl if math.isnan(lately) else LATELY * kl + (1 - LATELY) * lately
        job.progress(f"tune, KL {lately:.2g}", min(tokens, limits.tokens), limits.tokens)

    with student.at_work(gradients=True):
        units = _units(job, student, live.text[:1])
        moving = {each: slices_of(job, each.name) for unit in units for each in members(job, unit)}
        small = [name for name in job.kept if name in student.places and may_move(job, name) and student.moves(name)]
        moving |= {Unit(name, 0): 1 for name in small}
        repair = party.repair(student, moving, live.text, pace, worst, advance)
        wanted = max(1, limits.tokens // repair.step_tokens)
        spare = 0.0 if math.isinf(limits.until) else CAUTION * ROUNDINGS * rounding
        steps = min(wanted, _affordable(repair, limits.until - spare))
        if steps < min(wanted, LEAST_STEPS):
            return [], 0
        groups = grouped(job, units, min(MOST_GROUPS, max(2, steps // LEAST_STEPS)))
        last = max(1, round(AFTER * steps)) if len(groups) > 1 else steps
        each = (steps - last) // max(1, len(groups) - 1)
        room = goal.room() if goal.bits is None else opened.size
        made = Loop(job, opened, student, room, party.rounded).close(groups, repair, each, last, work)
        return [each for each in made if goal.bits is None or each.trial.bits_per_weight <= goal.bits], seen


def _work(job: Job, opened: Trial, goal: Goal, live: Live, limits: Limits, rate: float, ranks: int) -> Work:
    """Where a loop is kept while it runs: nowhere if it has to end by a time, on which its steps then depend."""
    if limits.artifact is None or not math.isinf(limits.until):
        return Work(None)
    assert live.text is not None
    tensors = [part for name in sorted(job.source.tensors) for part in (name, job.source.tensors[name])]
    machine = torch.__version__, torch.get_num_threads(), ranks
    how = (rate, limits.tokens, limits.seed, goal, machine, pgolf.__version__)
    texts = live.text, live.held
    return Work(
        path_for(limits.artifact), key_of([opened.encoded.data, *tensors, *texts, sorted(job.plans.items()), how])
    )


def _units(job: Job, student: Student, ids: Tensor) -> list[Unit]:
    theirs = {id(place): name for name, held in student.places.items() for place in held}
    names = {name: theirs[id(p)] for name, p in student.model.named_parameters() if id(p) in theirs}
    return units_in_order(job, in_order(student.model, student.run, ids), names)


def _spread(job: Job, student: Student) -> float:
    """How much wider the matrices of a model are than USUAL_SPREAD: steps go with them."""
    widths = sorted(float(student.weights[name].square().mean().sqrt()) for name in job.quantized)
    return widths[len(widths) // 2] / USUAL_SPREAD if widths else 1.0


def _affordable(repair: Repair, until: float) -> int:
    """How many steps end before a time, by one that is timed and has no effect; 0 where not even that one does."""
    if until == math.inf:
        return sys.maxsize
    began = time.perf_counter()
    repair.rehearse()
    now = time.perf_counter()
    return int(max(0.0, until - now) / (CAUTION * (now - began)))
