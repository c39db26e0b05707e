"""What a pack tells of its trial: a row for each tensor, and notes on what a reader should know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from pgolf.common.one_thread import one_thread_each
from pgolf.fitting import dropping
from pgolf.fitting.goal import Goal
from pgolf.fitting.plan import unread
from pgolf.fitting.trial import Job, Trial
from pgolf.models.checkpoint import Checkpoint, Item
from pgolf.packer.format.artifact import Entry
from pgolf.packer.format.shares import Shares
from pgolf.report import Fate, Report, TensorRow
from pgolf.report.pack_report import Asked

LOST = 0.7  # relative error beyond which a tensor is more noise than weights
GONE = 0.9  # and beyond which there is next to none of it
RUIN = 0.1  # nats per token of a foreseen rise: golf3m has .11 at 1.1 bits a weight, .25 at 0.73


def report_of(job: Job, trial: Trial, goal: Goal, notes: Sequence[str] = ()) -> Report:
    """The report of a job's trial, all but its seconds. notes: beside what the job and the trial themselves tell."""
    told = [
        *job.source.notes,
        *unread(job.plans),
        *job.notes,
        *_blind_spots(job),
        *_grown_damping(job),
        *_disobeyed(job, trial),
        *notes,
    ]
    held = trial.shares()
    with one_thread_each() as pool:
        rows = list(pool.map(lambda name: _row(job, name, trial, held), sorted(trial.entries)))
    made = Report(
        rows=rows,
        shared_bytes=held.shared,
        dropped=dropping.rows_of(job, trial),
        data=trial.encoded.data,
        code_bytes=dict(goal.code_bytes),
        budget=goal.budget,
        step=trial.step if job.searched else None,
        coder=job.coder,
        account=account_of(job.source, rows),
        notes=[*told, *dropping.notes_of(job.source, rows), *_losses(rows)],
    )
    return replace(made, asked=_asked(goal, made))


def _asked(goal: Goal, made: Report) -> Asked | None:
    """The goal and what was made of it, where that is known without running the model."""
    if goal.bits is not None:
        return Asked("bits", goal.bits, made.bits_per_weight)
    return None if goal.rise is None else Asked("target_rise", goal.rise, made.loss_rise or 0.0)


def account_of(source: Checkpoint, rows: Sequence[TensorRow]) -> list[Fate]:
    """What became of every tensor of the file, or of what was handed over."""
    by_name = {row.name: row for row in rows}
    return [_fate(item, by_name.get(item.name)) for item in source.account]


def _fate(item: Item, row: TensorRow | None) -> Fate:
    known = (item.path, item.name, list(item.shape), item.dtype, item.num_bytes)
    if row is None:
        return Fate(*known, fate="left out", why=item.why)
    if item.why:
        return Fate(*known, fate="alias", why=item.why)
    return Fate(*known, fate="packed" if row.error is not None else "kept", why=row.kept)


def _row(job: Job, name: str, trial: Trial, held: Shares) -> TensorRow:
    entry = trial.entries[name]
    error, rise = job.damage(name, entry)
    method, kept = _treatment(entry)
    return TensorRow(
        name=name,
        shape=list(entry.shape),
        dtype=entry.dtype,
        method=method,
        kept=kept,
        weights=0 if entry.alias is not None else math.prod(entry.shape),
        num_bytes=held.tensors[name],
        header_bytes=held.headers[name],
        error=error,
        loss_rise=rise,
    )


def _treatment(entry: Entry) -> tuple[str, str]:
    """(what was done to a tensor, why it was kept)."""
    if entry.alias is not None:
        return f"shared with {entry.alias}", ""
    if entry.planes is None:
        return f"kept as {entry.stored or entry.dtype}", entry.note
    if not getattr(torch, entry.dtype).is_floating_point:
        return f"kept as {entry.dtype} codes", entry.note
    return entry.note, ""


def _blind_spots(job: Job) -> list[str]:
    """A note that names the quantized tensors whose curvature is not known, where that of others is."""
    names = [name for name in job.quantized if name not in job.curvatures]
    if not job.curvatures or not names:
        return []
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return [f"packed without curvature, the model's use of them was not seen: {', '.join(names[:8])}{more}"]


def _grown_damping(job: Job) -> list[str]:
    """A note of the tensors whose curvature could not be factored as it was, with how much more it took."""
    if not job.damping:
        return []
    named = [f"{name} (by {share:.0e} of its mean)" for name, share in sorted(job.damping.items())]
    more = f" and {len(named) - 4} more" if len(named) > 4 else ""
    return [f"damping was raised where the curvature is not positive definite: {', '.join(named[:4])}{more}"]


def _losses(rows: Sequence[TensorRow]) -> list[str]:
    """Notes of what hardly anything is left of, where that is no choice of the market.

    With curvature the market empties tensors that the loss does not need, most of them in a healthy pack of 1.5 bits: an
    alarm is due where most weights went and the loss is foreseen to feel it. Without, nobody knew what a tensor is for.
    """
    quantized = [row for row in rows if row.error is not None]
    lost = [row for row in quantized if (row.error or 0.0) > LOST]
    rise = sum(row.loss_rise or 0.0 for row in quantized)
    most = 2 * sum(row.weights for row in lost) > sum(row.weights for row in quantized)
    if most and (rise > RUIN or any(row.loss_rise is None for row in lost)):
        few = f"of {len(lost)} of {len(quantized)} quantized tensors, with most of the weights, hardly anything is left"
        return [f"too few bytes for this model: {few} ({_named(lost)})"]
    gone = [row for row in quantized if row.loss_rise is None and (row.error or 0.0) > GONE]
    return [f"hardly anything is left of {_named(gone)}, whose use is not known: see --set NAME=keep"] if gone else []


def _named(rows: Sequence[TensorRow]) -> str:
    more = f" and {len(rows) - 4} more" if len(rows) > 4 else ""
    return f"{', '.join(row.name for row in rows[:4])}{more}"


def _disobeyed(job: Job, trial: Trial) -> list[str]:
    """A note of the tensors that --set wanted quantized and that are kept all the same, with the reason."""
    names = [n for n, plan in job.plans.items() if plan.asked and plan.settings and trial.entries[n].planes is None]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    told = ", ".join(f"{name} ({trial.entries[name].note})" for name in names[:4])
    return [f"kept, although --set wanted codes: {told}{more}"] if names else []
