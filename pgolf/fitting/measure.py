"""What an artifact does to its model: the KL and the rise of the loss on text held back, and who carries them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from pgolf.errors import ModelError, PgolfError
from pgolf.fitting.closed.student import Student
from pgolf.fitting.goal import Goal
from pgolf.fitting.live import Live
from pgolf.fitting.trial import Job, Trial
from pgolf.loading.dense import tensors_of
from pgolf.report.pack_report import Measured
from pgolf.scoring.divergence import Divergence

SURPRISING = 2.0  # times the foreseen rise
NOISY = 0.5  # of a largest rise: a standard error beyond which it says little
NAMED = 3  # tensors
AT_ONCE = 1024  # tokens that gradients are taken of


def put(trial: Trial, student: Student) -> None:
    """Give a student what an artifact decodes to."""
    decoded = tensors_of(trial.entries)
    student.reset({name: decoded[name] for name in student.places})


def tried(job: Job, trial: Trial, student: Student, live: Live) -> Divergence:
    """How far an artifact's model is from the unquantized one on the text held back. Leaves its weights in the student."""
    job.progress("measure", 0, live.held.numel())
    put(trial, student)
    found = student.divergence(live.held)
    job.progress("measure", live.held.numel(), live.held.numel())
    return found


def noise_notes(goal: Goal, found: Divergence) -> list[str]:
    """A note where the text held back is too short for what was asked of it."""
    if goal.max_rise is None or found.rise_error <= NOISY * goal.max_rise:
        return []
    return [
        f"the rise of {found.rise:.2g} is known to ± {found.rise_error:.2g} only, on {found.tokens:,} tokens: for a limit of "
        f"{goal.max_rise:g} give a longer text, or a limit of the KL, which scatters less"
    ]


def measured(
    job: Job, found: Divergence, student: Student, live: Live, foreseen: Mapping[str, float | None]
) -> Measured:
    """What is told of an artifact that was tried; the student holds its weights.

    foreseen: tensor -> predicted rise. Where the KL is more than twice their sum, `culprits` names the tensors that seem to
    carry the rest. Raises ModelError where either model gives no finite logits.
    """
    if not math.isfinite(found.kl):
        raise ModelError("with the packed weights, or without, the model gives NaN or infinity on the text held back")
    surprising = bool(job.curvatures) and found.kl > SURPRISING * sum(rise or 0.0 for rise in foreseen.values())
    try:
        culprits = _culprits(job, foreseen, student, live) if surprising else ()
    except PgolfError:  # no gradient, or no memory for one: what was measured stands without
        culprits = ()
    return Measured(text=live.what, culprits=culprits, **vars(found))


def _culprits(job: Job, foreseen: Mapping[str, float | None], student: Student, live: Live) -> tuple[str, ...]:
    """The tensors whose share of the KL is most above what was foreseen of them.

    Where the KL is the quadratic form ½ eᵀFe of the weights' errors e, its gradient is Fe, and ½ e·∇ is each tensor's share.
    """
    names = [name for name in job.quantized if name in student.places]
    shares = dict[str, float]()
    with student.at_work(gradients=True):
        for part in torch.split(live.held, max(1, AT_ONCE // live.held.shape[1])):
            for name, slope in student.slopes(part, names)[1].items():
                moved = student.weights[name] - student.own[name].float()
                shares[name] = shares.get(name, 0.0) + 0.5 * float((slope * moved).sum()) * len(part) / len(live.held)
    beyond = {name: share - (foreseen.get(name) or 0.0) for name, share in shares.items()}
    worst = sorted(beyond, key=lambda name: -beyond[name])[:NAMED]
    return tuple(name for name in worst if beyond[name] > 0)
