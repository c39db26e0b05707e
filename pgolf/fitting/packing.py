"""The whole story: a checkpoint and a goal become a job, its best trial an artifact, and a report tells of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pgolf.common import ranks
from pgolf.common.progress import silent
from pgolf.fitting import deadline as deadlines
from pgolf.fitting.budget import goal_of, meet
from pgolf.fitting.inputs import job_of
from pgolf.fitting.report_of import report_of
from pgolf.packer.format import artifact
from pgolf.report import Report

if TYPE_CHECKING:
    from pgolf.common.progress import Progress
    from pgolf.common.sizes import Size
    from pgolf.fitting.inputs import Model
    from pgolf.quant.curvature.store import Curvature
    from pgolf.quant.settings import Settings


def pack(
    model: Model,
    path: str | Path | None,
    *,
    budget: Size | None = None,
    target_rise: float | None = None,
    curvature: Curvature | None = None,
    method: str | None = None,
    rules: str | Sequence[str] = (),
    settings: Settings | None = None,
    code: str | Path | Sequence[str | Path] = (),
    coder: str = "rans",
    deadline: float | None = None,
    progress: Progress | None = None,
    state: str | None = None,
    drop: str | Sequence[str] = (),
) -> Report:
    """Pack a model into an artifact at `path` (replaced whole, or left as it was when anything goes wrong).

    model: a module, a state dict, a checkpoint's path, or what `pgolf.models.checkpoint.read` made of one. path: None writes
    nothing; the bytes are in the report.
    budget: bytes or "16MB", for the artifact plus the `code` file or files as a submission counts them; target_rise: instead of
    a budget, the predicted rise of the loss in nats per token; with neither the settings are used as they are.
    state: dotted path of the weights to take, where a checkpoint has several. drop: globs of buffers to leave out, which
    the model's class makes by itself; a module, or a checkpoint read for one, says what is a buffer.
    method: a name in `pgolf.quant.METHODS`, with settings of its own as "gptq:int6,k=9", or "keep" to change no value.
    rules: as `--set`; settings: for what neither speaks of. deadline: seconds from this call, after which the best
    artifact so far is returned; with one, bytes depend on the machine's speed. In a process group rank 0 packs and
    writes; all ranks get its report, or its error.
    Raises BudgetError (does not fit), CheckpointError, CurvatureError, UsageError.
    """
    began = time.perf_counter()

    def alone() -> Report:
        goal = goal_of(budget, target_rise, code)
        job = job_of(
            model,
            curvature,
            method=method,
            rules=rules,
            settings=settings,
            search=goal.moves,
            coder=coder,
            progress=progress or silent,
            state=state,
            drop=drop,
        )
        if deadline is None:
            trial, how = meet(job, goal), ""
        else:
            trial, how = deadlines.meet(job, goal, began, deadline)
        report = replace(report_of(job, trial, goal, [how] if how else []), seconds=time.perf_counter() - began)
        if path is not None:
            artifact.write(Path(path), report.data)
        return report

    return ranks.on_first(alone)
