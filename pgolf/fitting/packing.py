"""The whole story: a checkpoint and a goal become a job, its best trial an artifact, and a report tells of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch

from pgolf.common.files import same_file
from pgolf.common.progress import silent
from pgolf.errors import PgolfError, UsageError, is_out_of_memory
from pgolf.fitting import deadline as deadlines
from pgolf.fitting.budget import meet
from pgolf.fitting.closed import work
from pgolf.fitting.closed.helper import Helper
from pgolf.fitting.closed.student import Student, places_in
from pgolf.fitting.closed.tune import Limits, tokens_of, tuned, usual
from pgolf.fitting.goal import goal_of
from pgolf.fitting.inputs import job_of
from pgolf.fitting.inverse import smallest
from pgolf.fitting.live import live_of
from pgolf.fitting.measure import measured, noise_notes, put, tried
from pgolf.fitting.report_of import report_of
from pgolf.fitting.reprice import Patience, note_of, repriced
from pgolf.fitting.resume import working
from pgolf.fitting.shared_among_ranks import led
from pgolf.models.logits import original
from pgolf.packer.format import artifact
from pgolf.report import Report
from pgolf.report.pack_report import Asked

UNASKED = "tuned as every model on a GPU is that has text: --tune 8M does more, --tune off leaves it"

if TYPE_CHECKING:
    from torch import Tensor

    from pgolf.common.progress import Progress
    from pgolf.common.sizes import Size
    from pgolf.fitting.goal import Goal
    from pgolf.fitting.inputs import Model
    from pgolf.fitting.live import Live
    from pgolf.fitting.trial import Job, Trial
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
    text: Tensor | Live | None = None,
    tune: Size | None = None,
    seed: int = 0,
    drop: str | Sequence[str] = (),
    bits: float | None = None,
    max_kl: float | None = None,
    max_rise: float | None = None,
) -> Report:
    """Pack a model into an artifact at `path` (replaced whole, or left as it was when anything goes wrong).

    model: a module, a state dict, a checkpoint's path, or what `pgolf.models.checkpoint.read` made of one. path: None writes
    nothing; the bytes are in the report.
    budget: bytes or "16MB", for the artifact plus the `code` file or files as a submission counts them. Instead of a budget
    target_rise: the predicted rise of the loss in nats per token; or bits: a weight of the quantized tensors, codes and
    scales; or max_kl, max_rise: the smallest artifact whose KL from the unquantized model, or rise of its loss, is at most
    that in nats per token, measured on what is held back of `text`. With none the settings are used as they are.
    state: dotted path of the weights to take, where a checkpoint has several. drop: globs of buffers to leave out, which
    the model's class makes by itself; a module, or a checkpoint read for one, says what is a buffer.
    method: a name in `pgolf.quant.METHODS`, with settings of its own as "gptq:int6,k=9", or "keep" to change no value.
    rules: as `--set`; settings: for what neither speaks of. deadline: seconds from this call, after which the best
    artifact so far is returned; with one, bytes depend on the machine's speed.
    text: int64 [sequences, tokens] that the module packed can read, or a `Live` for another module: the artifact's KL and its
    rise of the loss are measured on sequences held back. tune: tokens of the rest ("1.5M") on which what still floats repairs
    what is rounded (docs/METHOD.md), or "off"; without, 1.5M where the module lies on a GPU with room for it. seed: of their
    order. In a process group all ranks that were given the same round matrices and tune, rank 0 does the rest and writes; all
    get its report, or its error.
    Raises BudgetError (does not fit), CheckpointError, CurvatureError, UsageError.
    """
    began = time.perf_counter()

    if path is not None and isinstance(model, (str, Path)) and same_file(Path(path), Path(model)):
        raise UsageError(f"{path} is the checkpoint itself, which would be lost: give another name")

    def made() -> Job:
        goal, live = asked()
        _refuse_together(goal, deadline, live, tokens_of(tune))
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
        if live is not None and tokens_of(tune):
            places_in(job.source, original(live.model))  # which would be found out after everything was rounded
        return job

    def asked() -> tuple[Goal, Live | None]:
        goal = goal_of(budget, target_rise, code, bits=bits, max_kl=max_kl, max_rise=max_rise)
        return goal, live_of(model, text)

    def packed(job: Job) -> Report:
        goal, live = asked()
        tokens = tokens_of(tune) if tune is not None or goal.measured or not job.quantized else usual(live)
        if path is not None and deadline is None:
            job = working(job, Path(path))
        started = time.perf_counter()
        if live is not None and goal.measured:
            report = _kept_near(job, goal, live)
        else:
            trial, how = (meet(job, goal), "") if deadline is None else deadlines.meet(job, goal, began, deadline)
            told = [*([how] if how else []), *(["gone on with after a break"] if job.work and job.work.gone_on else [])]
            if live is None:
                report = report_of(job, trial, goal, told)
            else:
                until, file = began + deadline if deadline else math.inf, Path(path) if path else None
                limits = Limits(tokens or 0, until, seed, file, tune is not None)
                rounding = math.inf if how else time.perf_counter() - started  # after a lesser way there is no time
                report = _tried(job, trial, goal, live, limits, rounding, told)
        report = replace(report, seconds=time.perf_counter() - began)
        if path is not None:
            artifact.write(Path(path), report.data)
            if job.work:
                job.work.remove()
            if tokens:
                work.Work(work.path_for(Path(path))).remove()
        return report

    with torch.inference_mode(False):  # of a caller's: no gradient could be taken of what is made in it
        return led(made, packed, lambda job: Helper(job, asked()[1] if job else None))


def _refuse_together(goal: Goal, deadline: float | None, live: Live | None, tokens: int | None) -> None:
    """Raises UsageError for wishes that do not go together, before anything is computed."""
    if tokens and live is None:
        raise UsageError("tune needs a model and text to tune on: text=, or --model and --calib")
    if tokens and live is not None and live.text is None:
        raise UsageError("tune needs more text than is held back to measure on: give a longer one")
    if not goal.measured:
        return
    name = "max_kl" if goal.max_kl is not None else "max_rise"
    if live is None:
        raise UsageError(
            f"{name} is measured, which needs a model and text: text=, or --model and a --calib longer than --tokens"
        )
    if deadline is not None:
        raise UsageError(
            f"{name} and a deadline exclude each other: how many trials a measured limit takes is not foreseen"
        )
    if tokens:
        refuse_tuning_within(name)


def refuse_tuning_within(limit: str) -> NoReturn:
    """Raises UsageError. limit: what is measured, as the user named it."""
    raise UsageError(f"{limit} and tune exclude each other: tuning fills a budget; give it the bytes that {limit} took")


def _kept_near(job: Job, goal: Goal, live: Live) -> Report:
    """The report of the smallest artifact that a measured limit allows."""
    student = Student(job.source, live.model, live.logits, learns=False)
    trial, found, trials = smallest(job, goal, lambda trial: tried(job, trial, student, live))
    put(trial, student)
    report = report_of(job, trial, goal, noise_notes(goal, found))
    foreseen = {row.name: row.loss_rise for row in report.rows}
    asked = (
        Asked("max_rise", goal.max_rise, found.rise, trials)
        if goal.max_kl is None and goal.max_rise is not None
        else Asked("max_kl", goal.max_kl or 0.0, found.kl, trials)
    )
    return replace(report, measured=measured(job, found, student, live, foreseen), asked=asked)


def _tried(job: Job, trial: Trial, goal: Goal, live: Live, limits: Limits, rounding: float, told: list[str]) -> Report:
    """The report of a trial that is measured in its model, after tuning where that is asked for.

    Whatever keeps a model from being run again is a note: the artifact is good without a measurement.
    """
    outcome = None
    try:
        student = Student(job.source, live.model, live.logits, learns=bool(limits.tokens))
        priced = repriced(job, trial, goal, student, live, Patience(limits.until, rounding))
        job, trial, found, told = priced.job, priced.trial, priced.found, [*told, *note_of(priced)]
        if limits.tokens and math.isfinite(found.kl):
            try:
                made, found, outcome = tuned(
                    replace(job, work=None), trial, goal, student, live, limits, rounding, found
                )
                job, trial, told = made.job, made.trial, told if limits.asked else [*told, UNASKED]
            except (PgolfError, RuntimeError, MemoryError) as error:
                if limits.asked or not (isinstance(error, PgolfError) or is_out_of_memory(error)):
                    raise
                put(trial, student)
                told = [*told, f"not tuned: {error}"]
        report = report_of(job, trial, goal, told)
        told_of = measured(job, found, student, live, {row.name: row.loss_rise for row in report.rows})
    except PgolfError as error:
        if limits.tokens and limits.asked:
            raise
        return report_of(job, trial, goal, [*told, f"what was packed is not measured: {error}"])
    return replace(report, measured=told_of, tuned=outcome)
