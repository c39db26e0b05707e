"""A pack that ends in time: first the fastest way to an artifact that fits, then the best way that there is time for.

What will surprise you:
* The fastest way runs to its end whatever the deadline: a late artifact is worth more than none.
* The compiled loops may not be in numba's cache on a fresh machine. They are built on a thread of their own (about ten
  seconds, once a machine); if they come too late the fastest way's artifact stands. The process waits for that thread
  before it exits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from threading import Thread

import torch

from pgolf.common.one_thread import one_thread
from pgolf.common.threads import workers
from pgolf.errors import BudgetError, UsageError
from pgolf.fitting import budget
from pgolf.fitting.goal import Goal
from pgolf.fitting.search import OutOfTime
from pgolf.fitting.trial import Job, Trial
from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import Entry
from pgolf.quant import METHODS, Settings
from pgolf.quant.curvature.store import MatrixCurvature

CAUTION = 1.15  # other work may share the machine
TRIALS = 1.4  # a search takes one or two
RESERVE = 0.02  # of the deadline, for what nobody foresees


@dataclass(frozen=True)
class Cost:
    """What one way takes, foreseen from one matrix: seconds of one thread for all factors, and for each weight."""

    factors: float
    per_weight: float
    weights: int

    @property
    def seconds(self) -> float:
        """Of the clock, with all threads at work."""
        return CAUTION * (self.factors + TRIALS * self.per_weight * self.weights) / workers()


def meet(job: Job, goal: Goal, began: float, seconds: float) -> tuple[Trial, str]:
    """The best trial that was ready `seconds` after `began`, and how it was made, "" if as it was asked for.

    Raises UsageError for a deadline that is no time at all, and what `budget.meet` raises for the fastest way.
    """
    if not 0 < seconds < float("inf"):
        raise UsageError(f"a deadline of {seconds:g} seconds cannot be kept: give a positive number")
    first, *better = ways(job)
    trial = budget.meet(first, goal, hurried=bool(better))
    if not better:
        return trial, ""
    late = time.perf_counter() - began
    if late > seconds:
        return trial, f"the deadline of {seconds:g} s was missed: the fastest way alone took {late:.1f} s"
    ends = began + (1 - RESERVE) * seconds - trial.coding_seconds - reporting_seconds(first, trial)
    found, made_by, why = _best(better, goal, trial, ends)
    if made_by is better[-1]:
        return found, ""
    how = _described(made_by or first) + (f", the fastest way; {why}" if made_by is None else "")
    return found, f"deadline of {seconds:g} s: packed with {how}"


def _best(better: list[Job], goal: Goal, first: Trial, ends: float) -> tuple[Trial, Job | None, str]:
    """(the trial of the best way that meets the goal before `ends`, that way); else `first`, None and why it is."""
    why = "nothing else had time"
    if not _compiled(better[-1], ends):
        return first, None, why
    for way in reversed(better):
        try:
            return _in_time(replace(way, until=ends), goal, first.step), way, ""
        except OutOfTime:
            continue
        except BudgetError:  # the first way fitted: its artifact is what was asked for
            why = "nothing else fitted in time"
    return first, None, why


def _in_time(way: Job, goal: Goal, step: float) -> Trial:
    """What a way gives, begun only if there is time for it. Raises OutOfTime, and BudgetError."""
    cost = foreseen(way, step)
    if time.perf_counter() + cost.seconds > way.until:
        raise OutOfTime
    return budget.meet(replace(way, seconds_per_weight=cost.per_weight), goal)


def _compiled(job: Job, ends: float) -> bool:
    """Whether the loops that the job needs are there before `ends`."""
    if "auto" not in job.methods():
        return True
    compiling = Thread(target=build_loops)
    compiling.start()
    compiling.join(max(ends - time.perf_counter(), 0))
    return not compiling.is_alive()


def ways(job: Job) -> list[Job]:
    """Jobs from the fastest way to the one that was asked for; fewer where they are the same."""
    found: list[Job] = []
    for level in (_fastest, _plain, _one_sided, lambda settings: settings):
        plans = {
            name: plan if plan.settings is None else replace(plan, settings=level(plan.settings))
            for name, plan in job.plans.items()
        }
        if all(plans != way.plans for way in found):
            found.append(replace(job, plans=plans, prepared={}, foreseen={}))
    return found


def _fastest(settings: Settings) -> Settings:
    fast = {"auto": "quick", "gptq": "sdclip"}
    return replace(settings, method=fast.get(settings.method, settings.method))


def _plain(settings: Settings) -> Settings:
    return replace(settings, trellis=0, two_sided=False) if settings.method == "auto" else settings


def _one_sided(settings: Settings) -> Settings:
    return replace(settings, two_sided=False) if settings.method == "auto" else settings


def _described(way: Job) -> str:
    chosen = [plan.settings for plan in way.plans.values() if plan.settings is not None]
    auto = [s for s in chosen if s.method == "auto"]
    if not auto:
        return ", ".join(sorted({s.method for s in chosen}))
    trellis = f"{auto[0].trellis}-state trellis" if auto[0].trellis else "scalar rounding"
    return f"auto, {trellis}, errors fed along rows only" if not auto[0].two_sided else f"auto, {trellis}"


def reporting_seconds(way: Job, trial: Trial) -> float:
    """What it takes to tell the damage of a trial, foreseen from one tensor."""
    name = _typical(way)
    if name is None:
        return 0.0
    began = time.perf_counter()
    way.damage(name, trial.entries[name])
    share = way.weights([name]) / way.weights(way.quantized)
    return CAUTION * (time.perf_counter() - began) / share / workers()


def foreseen(way: Job, step: float) -> Cost:
    """The cost of a way: factors from the largest ones, the rest from quantizing one typical tensor at about its step."""
    name = _typical(way)
    if name is None:
        return Cost(0.0, 0.0, 0)
    method = way.plans[name].at(step).method
    cubes = {n: _cubes(way, n) for n in way.quantized if way.plans[n].at(step).method == method}
    hardest = max(cubes, key=lambda n: (cubes[n], n))
    with one_thread():
        factoring = _seconds(lambda: way.prepare(hardest))
        way.prepare(name)
        rounding = _seconds(lambda: way.quantize(name, step))
    factors = factoring * sum(cubes.values()) / max(cubes[hardest], 1.0)
    return Cost(factors, rounding / way.weights([name]), way.weights(way.quantized))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _typical(way: Job) -> str | None:
    """A quantized tensor of middling size, whose slowest method there is: half the weights are in smaller ones."""
    slow = [n for n in way.quantized if way.plans[n].at(1.0).method in {"auto", "gptq"}]
    names = sorted(slow or way.quantized, key=lambda n: (way.weights([n]), n))
    sums = accumulate(way.weights([name]) for name in names)
    half = way.weights(names) / 2
    return next((name for name, so_far in zip(names, sums, strict=True) if so_far >= half), None)


def _cubes(way: Job, name: str) -> float:
    """Σ n³ over the sides whose curvature is factored."""
    two_sided = way.plans[name].at(1.0).two_sided

    def of(known: MatrixCurvature | None) -> float:
        if known is None:
            return 0.0
        rows = known.G.shape[0] if two_sided and known.G is not None and known.G.dim() == 2 else 0
        return float(known.H.shape[0]) ** 3 + float(rows) ** 3

    return sum(of(known) for known in way.curvatures.get(name, []))


def build_loops() -> None:
    """Compile, or load from numba's cache, every loop that quantizing and coding with a trellis uses."""
    weight = torch.linspace(-1, 1, 16 * 16, dtype=torch.float32).reshape(16, 16).sin()
    settings = Settings(method="auto")
    side = torch.eye(16, dtype=torch.float32)
    plane = METHODS["auto"].quantize(weight, MatrixCurvature(side, side.clone()), settings)
    artifact.encode({"w": Entry("float32", (16, 16), planes=(plane,))})
