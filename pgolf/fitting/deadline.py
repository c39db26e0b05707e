"""A pack that ends in time: first the fastest way to an artifact that fits, then the best way that there is time for.

What will surprise you:
* The fastest way runs to its end whatever the deadline: a late artifact is worth more than none.
* How long a better way takes is foreseen from one matrix, measured here and now; a way that falls behind is given up.
* The compiled loops may not be in numba's cache on a fresh machine. They are built on a thread of their own (about ten
  seconds, once a machine); if they come too late the fastest way's artifact stands. The process waits for that thread
  before it exits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from threading import Thread

import torch

from pgolf.common.threads import workers
from pgolf.errors import UsageError
from pgolf.fitting.plan import TensorPlan
from pgolf.fitting.search import OutOfTime
from pgolf.fitting.trial import Job, Trial, one_thread
from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import Entry
from pgolf.quant import METHODS, Settings
from pgolf.quant.curvature.store import MatrixCurvature

Plans = Mapping[str, TensorPlan]
Attempt = Callable[[Job, Plans, bool], Trial]  # (job, plans, whether the first artifact that fits will do)

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


def pack(job: Job, plans: Plans, began: float, seconds: float, attempt: Attempt) -> tuple[Trial, str]:
    """The best trial that was ready `seconds` after `began`, and a note on how it was made.

    Raises UsageError for a deadline that is no time at all; what `attempt` raises is passed on.
    """
    if not 0 < seconds < float("inf"):
        raise UsageError(f"a deadline of {seconds:g} seconds cannot be kept: give a positive number")
    first, *better = ways(plans)
    trial = attempt(job, first, bool(better))
    if not better:
        return trial, ""
    ends = began + (1 - RESERVE) * seconds - trial.coding_seconds - reporting_seconds(job, first, trial)
    if time.perf_counter() > began + seconds:
        late = time.perf_counter() - began
        return trial, f"the deadline of {seconds:g} s was missed: the fastest way alone took {late:.1f} s"
    if _compiled(plans, ends):
        for number, way in enumerate(reversed(better)):
            found = _try(replace(job, prepared={}, until=ends), way, trial, attempt)
            if found is not None:
                return found, "" if number == 0 else f"deadline of {seconds:g} s: packed with {_described(way)}"
    return trial, f"deadline of {seconds:g} s: packed with {_described(first)}, the fastest way; nothing else had time"


def _compiled(plans: Plans, ends: float) -> bool:
    """Whether the loops that the plans need are there before `ends`."""
    if not any(p.settings is not None and p.settings.method == "auto" for p in plans.values()):
        return True
    compiling = Thread(target=build_loops)
    compiling.start()
    compiling.join(max(ends - time.perf_counter(), 0))
    return not compiling.is_alive()


def _try(job: Job, way: Plans, before: Trial, attempt: Attempt) -> Trial | None:
    """What a way gives, None if there is no time for it."""
    try:
        cost = foreseen(job, way, before.step)
        if time.perf_counter() + cost.seconds > job.until:
            return None
        return attempt(replace(job, seconds_per_weight=cost.per_weight), way, False)
    except OutOfTime:
        return None


def ways(plans: Plans) -> list[Plans]:
    """Plans from the fastest way to the one that was asked for; fewer where they are the same."""
    found: list[Plans] = []
    for level in (_fastest, _plain, _one_sided, lambda settings: settings):
        way = {name: p if p.settings is None else replace(p, settings=level(p.settings)) for name, p in plans.items()}
        if way not in found:
            found.append(way)
    return found


def _fastest(settings: Settings) -> Settings:
    fast = {"auto": "quick", "gptq": "sdclip"}
    return replace(settings, method=fast.get(settings.method, settings.method))


def _plain(settings: Settings) -> Settings:
    return replace(settings, trellis=0, two_sided=False) if settings.method == "auto" else settings


def _one_sided(settings: Settings) -> Settings:
    return replace(settings, two_sided=False) if settings.method == "auto" else settings


def _described(way: Plans) -> str:
    chosen = [p.settings for p in way.values() if p.settings is not None]
    auto = [s for s in chosen if s.method == "auto"]
    if not auto:
        return ", ".join(sorted({s.method for s in chosen}))
    trellis = f"{auto[0].trellis}-state trellis" if auto[0].trellis else "scalar rounding"
    return f"auto, {trellis}, errors fed along rows only" if not auto[0].two_sided else f"auto, {trellis}"


def reporting_seconds(job: Job, way: Plans, trial: Trial) -> float:
    """What it takes to tell the damage of a trial, foreseen from one tensor."""
    name = _typical(job, way)
    if name is None:
        return 0.0
    began = time.perf_counter()
    job.damage(name, trial.entries[name])
    total = sum(job.source.tensors[n].numel() for n, p in way.items() if p.settings is not None)
    return CAUTION * (time.perf_counter() - began) * total / job.source.tensors[name].numel() / workers()


def foreseen(job: Job, way: Plans, step: float) -> Cost:
    """The cost of a way: factors from the largest ones, the rest from quantizing one typical tensor at about its step."""
    name = _typical(job, way)
    if name is None:
        return Cost(0.0, 0.0, 0)
    settings = way[name].at(step)
    names = [n for n, p in way.items() if p.settings is not None]
    cubes = {n: _cubes(job, n, settings) for n in names if way[n].at(step).method == settings.method}
    hardest = max(cubes, key=lambda n: (cubes[n], n))
    with one_thread():
        began = time.perf_counter()
        if METHODS[settings.method].staged is not None:
            job.prepare(hardest, way[hardest].at(step))
        ready = time.perf_counter()
        if METHODS[settings.method].staged is not None:
            job.prepare(name, settings)
        factored = time.perf_counter()
        job.quantize(name, settings)
        done = time.perf_counter()
    weights = sum(job.source.tensors[n].numel() for n in names)
    factors = (ready - began) * sum(cubes.values()) / max(cubes[hardest], 1.0)
    return Cost(factors, (done - factored) / job.source.tensors[name].numel(), weights)


def _typical(job: Job, way: Plans) -> str | None:
    """A quantized tensor of middling size, whose slowest method there is."""
    slow = [n for n, p in way.items() if p.settings is not None and p.settings.method in {"auto", "gptq"}]
    names = sorted(
        slow or [n for n, p in way.items() if p.settings is not None],
        key=lambda n: (job.source.tensors[n].numel(), n),
    )
    return names[len(names) // 2] if names else None


def _cubes(job: Job, name: str, settings: Settings) -> float:
    """Σ n³ over the sides whose curvature is factored."""

    def of(known: MatrixCurvature | None) -> float:
        if known is None:
            return 0.0
        rows = known.G.shape[0] if settings.two_sided and known.G is not None and known.G.dim() == 2 else 0
        return float(known.H.shape[0]) ** 3 + float(rows) ** 3

    return sum(of(known) for known in job.curvatures.get(name, []))


def build_loops() -> None:
    """Compile, or load from numba's cache, every loop that quantizing and coding with a trellis uses."""
    weight = torch.linspace(-1, 1, 16 * 16).reshape(16, 16).sin()
    settings = Settings(method="auto")
    plane = METHODS["auto"].quantize(weight, MatrixCurvature(torch.eye(16), torch.eye(16)), settings)
    artifact.encode({"w": Entry("float32", (16, 16), planes=(plane,))})
