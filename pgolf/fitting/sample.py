"""What a model takes at a position of the knob, told from a sample of its matrices.

Of every kind of matrices (names that differ in numbers alone) some are rounded and coded, evenly from first to last, and some
rows of a table that is alone of its kind. What those take over what was foreseen of them is what all of their kind take over
what is foreseen of all. Kinds differ in that, matrices of a kind hardly do; by how much, the sample says itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from pgolf.fitting.trial import Job, Trial
from pgolf.models.checkpoint import Checkpoint
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.slices import matrix_shape
from pgolf.report.names import skeleton

PAIR = 2  # matrices of a kind at least, for two tell their scatter
FEW = 8  # matrices of a kind: of fewer, some rows of PAIR of them
PARTS = 4  # of a kind that is cut, each a matrix of its own
LARGE, SHORTEST = 1 << 20, 64  # weights of a matrix that is cut, and rows of a part


@dataclass(frozen=True)
class Told:
    """What a whole trial is taken to give. num_bytes: of the artifact; bits: of the quantized tensors in it; error: the
    standard error of either, as a share of it."""

    num_bytes: float
    bits: float
    error: float


@dataclass(frozen=True)
class Kind:
    """Leaders that are alike, the names of those in the sample, or of their parts, and the weights of both."""

    everyone: tuple[str, ...]
    sampled: tuple[str, ...]
    weights: int
    sampled_weights: int


@dataclass(frozen=True)
class Sample:
    """A job, some of its matrices as a job of their own, and which of them stand for which."""

    whole: Job
    job: Job
    kinds: Sequence[Kind]

    def expected_bytes(self, step: float) -> float:
        """About `Job.expected_bytes` of the whole, from what is foreseen of the sample."""
        found = self.job.expected_bits(step)
        bits = (sum(found[n] for n in kind.sampled) * kind.weights / kind.sampled_weights for kind in self.kinds)
        self._hand_over()
        return sum(bits) / 8

    @cached_property
    def kept_bytes(self) -> int:
        """Of the artifact without the quantized tensors."""
        return self.whole.kept_bytes()

    def told(self, step: float) -> Told:
        """What the sample says of a whole trial at a step."""
        names = [name for kind in self.kinds for name in kind.sampled]
        trial = self.job.run(step)
        taken = taken_bits(self.job, trial, names)
        headers = (trial.size - sum(taken.values()) / 8) * len(self.whole.leaders) / len(names)
        self._hand_over()
        some, all_ = (
            job.expected_bits(step) if job.foresees() else {n: float(job.weights(job.together(n))) for n in job.leaders}
            for job in (self.job, self.whole)
        )
        found = [_of_kind(kind, taken, some, all_) for kind in self.kinds]
        bits = sum(each for each, _ in found)
        error = math.sqrt(sum(variance for _, variance in found)) / max(bits, 1.0)
        return Told(self.kept_bytes + headers + bits / 8, bits, error)

    def _hand_over(self) -> None:
        """What was factored for matrices of the whole is theirs."""
        theirs = self.whole.plans
        self.whole.prepared.update({name: made for name, made in self.job.prepared.items() if name in theirs})
        self.whole.damping.update({name: share for name, share in self.job.damping.items() if name in theirs})


def of(job: Job, share: float) -> Sample:
    """About this share of a job's matrices, PAIR of a kind at least."""
    alike: dict[object, list[str]] = defaultdict(list)
    for name in job.leaders:
        alike[skeleton(name), job.matrix_of(name), job.plans[name].at(1.0).method].append(name)
    parts: dict[str, tuple[str, slice]] = {}
    kinds = []
    for names in alike.values():
        mine = {cut: (name, rows) for name in evenly(names, PAIR) for cut, rows in _cuts(job, name, share, len(names))}
        whole = (
            {}
            if mine
            else {name: (name, slice(None)) for name in evenly(names, max(PAIR, math.ceil(share * len(names))))}
        )
        parts |= mine | whole
        kinds.append((names, tuple(mine | whole)))
    made = _job_of(job, parts)
    return Sample(
        job,
        made,
        [Kind(tuple(names), mine, _weights(job, names), _weights(made, mine)) for names, mine in kinds],
    )


def _weights(job: Job, leaders: Sequence[str]) -> int:
    return sum(job.weights(job.together(name)) for name in leaders)


def _job_of(job: Job, parts: Mapping[str, tuple[str, slice]]) -> Job:
    """The job of some parts of tensors; a whole one is under its name, with all that are rounded with it."""
    tensors: dict[str, Tensor] = {}
    plans, curvatures, stacks = {}, {}, {}
    for part, (name, rows) in parts.items():
        if part == name:
            if name in job.stacks:
                stacks[name] = job.stacks[name]
            for each in job.together(name):
                tensors[each], plans[each] = job.source.tensors[each], job.plans[each]
                if each in job.curvatures:
                    curvatures[each] = job.curvatures[each]
        else:
            tensors[part], plans[part] = job.source.tensors[name][rows].clone(), job.plans[name]
            if name in job.curvatures:
                curvatures[part] = _cut(job.curvatures[name], rows)
    return replace(
        job,
        source=Checkpoint(tensors),
        plans=plans,
        curvatures=curvatures,
        stacks=stacks,
        progress=lambda what, done, total: job.progress(f"a sample: {what}", done, total),
        prepared={name: made for name, made in job.prepared.items() if name in plans},
        damping={},
        stalls={},
        least={},
        foreseen={},
        compressed={},
        work=None,
        crew=None,
    )


def _cuts(job: Job, name: str, share: float, of_kind: int) -> list[tuple[str, slice]]:
    """Parts of a matrix or bank that is one of few of its kind, by name; none where it is taken whole."""
    tensor, parts = job.source.tensors[name], PARTS // min(of_kind, PAIR)
    whole = matrix_shape(tuple(tensor.shape))
    is_bank = whole is not None and whole[0] > 1
    each = max(1 if is_bank else SHORTEST, math.ceil(len(tensor) * share * of_kind / PARTS))
    by = len(tensor) // each
    if of_kind >= FEW or len(job.together(name)) > 1 or tensor.numel() < LARGE or by < 2 * parts:
        return []
    cuts = [slice(i * by // parts, None, by) for i in range(parts)]
    same = all(_is_part(job.curvatures.get(name), tuple(tensor[rows].shape), tuple(tensor.shape)) for rows in cuts)
    return [(f"{name}[{rows.start}::{by}]", rows) for rows in cuts] if same else []


def _is_part(known: Sequence[MatrixCurvature | None] | None, part: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether rows of a tensor, or slices of a bank, are rounded as they are in the whole: no error is fed to other rows."""
    here, there = matrix_shape(part), matrix_shape(whole)
    if here is None or there is None or here[2] != there[2]:
        return False
    if there[0] > 1:
        return here[:2] == (part[0], there[1])
    return all(each is None or each.G is None or each.G.dim() == 1 for each in known or ())


def _cut(known: Sequence[MatrixCurvature | None], rows: slice) -> list[MatrixCurvature | None]:
    if len(known) > 1:
        return list(known[rows])
    return [each and replace(each, G=None if each.G is None else each.G[rows].clone()) for each in known]


def evenly(names: Sequence[str], count: int) -> list[str]:
    """So many of `names`, or all where there are fewer, evenly from the first to the last."""
    count = min(len(names), count)
    return [names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count)]


def taken_bits(job: Job, trial: Trial, leaders: Sequence[str]) -> dict[str, float]:
    """Of codes, with those that are rounded together with them; of what the market keeps, all that it adds to the file."""
    coded = trial.encoded.tensor_bits
    held = {} if all(name in coded for name in leaders) else trial.shares().tensors
    own = {name: coded[name] if name in coded else 8 * held.get(name, 0.0) for name in trial.entries}
    return {name: sum(own[each] for each in job.together(name)) for name in leaders}


def _of_kind(
    kind: Kind, taken: Mapping[str, float], some: Mapping[str, float], everyone: Mapping[str, float]
) -> tuple[float, float]:
    """(bits of all that are of a kind, the variance of that): the ratio of taken to foreseen, as its sample has it."""
    foreseen, count = max(sum(some[name] for name in kind.sampled), 1.0), len(kind.sampled)
    ratio, total = sum(taken[name] for name in kind.sampled) / foreseen, sum(everyone[name] for name in kind.everyone)
    if count < PAIR or kind.sampled_weights >= kind.weights:
        return ratio * total, 0.0
    squares = sum((taken[name] - ratio * some[name]) ** 2 for name in kind.sampled) / (count - 1)
    left = 1 - kind.sampled_weights / kind.weights
    return ratio * total, left * squares / count * (count * total / foreseen) ** 2
