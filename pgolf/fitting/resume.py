"""Which packs take so long that their work is kept, and what tells one from another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import pgolf
from pgolf.common.threads import workers
from pgolf.fitting.trial import Job
from pgolf.fitting.work import Work, folder_for, key_of

WORTH = 60.0  # seconds of rounding, as foreseen, from which a pack is kept
SLOW = {"auto": 1e-6, "gptq": 2e-7}  # seconds of a thread for a weight; other methods are done before a file is written
TRIALS = 2  # a search takes one to three


def working(job: Job, path: Path) -> Job:
    """The job, with its work kept where it is worth that."""
    return replace(job, work=Work.at(folder_for(path), key_of_job(job))) if seconds(job) >= WORTH else job


def seconds(job: Job) -> float:
    """About what the rounding of a job takes."""
    settings = {name: plan.settings for name, plan in job.plans.items() if plan.settings is not None}
    cost = sum(SLOW.get(each.method, 0.0) * job.weights([name]) for name, each in settings.items())
    return TRIALS * cost / workers()


def key_of_job(job: Job) -> str:
    """64 hexadecimal digits that jobs share where they round the same weights in the same way at the same prices."""
    tensors = [part for name in sorted(job.source.tensors) for part in (name, job.source.tensors[name])]
    sides = [
        part
        for name in sorted(job.curvatures)
        for known in job.curvatures[name]
        for part in (name, *((None,) if known is None else (known.H, known.G, known.plain)))
    ]
    how = (
        sorted(job.plans.items()),
        sorted(job.stacks.items()),
        job.coder,
        job.source.config,
        sorted(job.source.dropped),
    )
    return key_of([pgolf.__version__, torch.__version__, np.__version__, *tensors, *sides, how])
