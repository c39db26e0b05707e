"""One pack at one position of the knob: every tensor quantized, coded, and its damage predicted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.common import scratch
from pgolf.common.one_thread import one_thread_each
from pgolf.common.progress import Progress, silent
from pgolf.common.sizes import show_size
from pgolf.errors import MemoryLimitError, is_out_of_memory
from pgolf.fitting import side_by_side
from pgolf.fitting.damage import of_entry, overflows
from pgolf.fitting.market import Form, Stall, least_bits, stall_of, surely_coded
from pgolf.fitting.plan import TensorPlan
from pgolf.fitting.search import OutOfTime
from pgolf.fitting.stacks import Stacks
from pgolf.fitting.work import Work
from pgolf.models import checkpoint
from pgolf.models.checkpoint import Checkpoint
from pgolf.packer.coder.classes import narrowed
from pgolf.packer.format import artifact, shares
from pgolf.packer.format.artifact import Encoded, Entry
from pgolf.packer.format.shares import Shares
from pgolf.packer.plane import Plane
from pgolf.quant import METHODS, describe
from pgolf.quant.curvature.factor import watched
from pgolf.quant.curvature.stacked import stacked
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.slices import matrix_shape

Kind = TypeVar("Kind", bound=np.generic)
NUMBERS = 4  # for a weight that is rounded: itself, what feedback makes of it, its code, and once more on the way


@dataclass(frozen=True)
class Trial:
    """What one position of the knob gave."""

    step: float
    entries: dict[str, Entry]
    encoded: Encoded
    coding_seconds: float = 0.0  # of `encoded`

    @property
    def size(self) -> int:
        """Bytes of the artifact."""
        return len(self.encoded.data)

    @property
    def bits_per_weight(self) -> float:
        """Over the quantized tensors, an embedding that is quantized among them: bits of their codes and scales. Names,
        shapes, what tensors share and what is kept do not count; as `Report.bits_per_weight` has it."""
        coded = {name: entry for name, entry in self.entries.items() if entry.planes and _is_float(entry.dtype)}
        weights = sum(math.prod(entry.shape) for entry in coded.values())
        return sum(self.encoded.tensor_bits[name] for name in coded) / max(weights, 1)

    def shares(self) -> Shares:
        """What each tensor adds to the artifact."""
        return shares.of(self.encoded.data, self.entries, self.encoded.tensor_bits)


class Crew(Protocol):
    """Other processes that hold the same job and do their part of it: see shared_among_ranks.py."""

    def knows(self, job: Job) -> bool:
        """Whether they hold this job."""

    def rounded(self, job: Job, step: float) -> dict[str, Entry]:
        """What `Job.rounded` gives of all tensors."""

    def expected_bits(self, job: Job, step: float) -> dict[str, float]:
        """What `Job.expected_bits_of` gives of all leaders, in their order."""

    def prices(self, job: Job) -> bool:
        """Whether they hold the weights of this job and their prices, whatever its plans."""

    def everybody(self, word: str, *arguments: Any, mine: Callable[[], Any]) -> list[Any]:
        """What each process answers to a word of the closed loop, this one by `mine`, in the order of their numbers.

        Raises what one of them raised.
        """


@dataclass(frozen=True)
class Job:
    """A checkpoint and how each of its tensors is to be packed, ready for any position of the knob.

    plans: tensor -> how. curvatures: tensor -> one for each slice.
    until: time.perf_counter() at which the codes must be there; seconds_per_weight: what a weight takes a thread.
    prepared: tensor -> its factored curvature, which no step changes.
    damping: tensor -> share of the mean diagonal that had to be added to its curvature before it could be factored.
    stalls: tensor -> what the market knows of it, see market.py; least: bits of its cheapest kept form; foreseen: a
    position of the knob and the bits that codes would take there.
    compressed: kept tensors as they are stored: to compress them is slow, and the same in every trial.
    stacks: first name -> all names whose matrices are rounded and stored as one, see stacks.py.
    notes: what the report says of the curvature.
    work: where what is done is kept from one process to the next, None nowhere.
    crew: the ranks that round with this one, None where it is alone.
    """

    source: Checkpoint
    plans: Mapping[str, TensorPlan]
    curvatures: Mapping[str, list[MatrixCurvature | None]]
    coder: str = "rans"
    progress: Progress = silent
    until: float = math.inf
    seconds_per_weight: float = 0.0
    prepared: dict[str, list[Any]] = field(default_factory=dict)
    damping: dict[str, float] = field(default_factory=dict)
    stalls: dict[str, Stall] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    foreseen: dict[str, tuple[float, float]] = field(default_factory=dict)
    compressed: artifact.Memory = field(default_factory=dict)
    stacks: Stacks = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    work: Work | None = None
    crew: Crew | None = None

    @property
    def quantized(self) -> list[str]:
        """Names of the tensors that are not kept."""
        return [name for name, plan in self.plans.items() if plan.settings is not None]

    @property
    def kept(self) -> list[str]:
        """Names of the others."""
        return [name for name, plan in self.plans.items() if plan.settings is None]

    @property
    def leaders(self) -> list[str]:
        """Names of the quantized tensors but those that are rounded with an earlier one."""
        followers = self._followers()
        return [name for name in self.quantized if name not in followers]

    def together(self, name: str) -> tuple[str, ...]:
        """The names of all tensors that are rounded with a leader, itself first."""
        return self.stacks.get(name, (name,))

    def _followers(self) -> set[str]:
        return {name for names in self.stacks.values() for name in names[1:]}

    @property
    def searched(self) -> list[str]:
        """Names of the tensors whose step size the knob moves."""
        return [name for name, plan in self.plans.items() if plan.searched]

    @property
    def finest(self) -> float:
        """The smallest useful knob, for all tensors that it moves."""
        return max(self.plans[name].finest for name in self.searched)

    def methods(self) -> set[str]:
        """Of the quantized tensors."""
        return {plan.settings.method for plan in self.plans.values() if plan.settings is not None}

    def weights(self, names: Iterable[str]) -> int:
        """How many numbers the tensors hold together."""
        return sum(self.source.tensors[name].numel() for name in names)

    def only(self, names: Iterable[str]) -> Job:
        """The same job for some of its tensors, of which no work is kept."""
        return replace(self, plans={name: self.plans[name] for name in names}, work=None)

    def run(self, step: float) -> Trial:
        """Quantize everything at one position of the knob and code it. Raises OutOfTime as soon as `until` is lost.

        Every matrix is quantized on one thread, several at a time: the bytes depend on no number of threads.
        """
        if self.work and (found := self.work.coded(step)):
            return Trial(step, *found)
        crew = self.crew if self.crew and self.crew.knows(self) else None
        entries = crew.rounded(self, step) if crew else self.rounded(self.plans, step)
        trial = self.coded(entries, step)
        if self.work:
            self.work.keep_coded(step, trial.encoded)
        return trial

    def rounded(self, wanted: Iterable[str], step: float) -> dict[str, Entry]:
        """The entries of tensors, and of those that are rounded with them, at one position of the knob."""
        alone, done, size = set(wanted) - self._followers(), 0, 0.0
        names = sorted(alone, key=lambda n: (-self.source.tensors[n].numel(), n))  # longest first: threads end together
        entries, total = dict[str, Entry](), sum(self.weights(self.together(name)) for name in names)
        self.progress("quantize", 0, total)
        ready = side_by_side.rounded(self, names, step)
        with one_thread_each() as pool:
            futures = {name: pool.submit(self._entries, name, step, ready.get(name)) for name in names}
            for count, name in enumerate(names, 1):
                entries |= futures[name].result()
                done += self.weights(self.together(name))
                size += self._foreseen_bytes(name)
                so_far = f", {show_size(size)}" if size else ""
                self.progress(f"quantize, {count} of {len(names)} tensors{so_far}", done, total)
        return entries

    def _foreseen_bytes(self, name: str) -> float:
        """About what the codes of a tensor take, where its method foresaw them."""
        return self.foreseen[name][1] / 8 if name in self.foreseen else 0.0

    def coded(self, entries: Mapping[str, Entry], step: float) -> Trial:
        """The artifact of entries for every tensor of the plans; what would take more bytes coded than as it is, is kept."""
        entries = dict(entries) | self._aliases(entries)
        meta: dict[str, Any] = {"config": self.source.config} if self.source.config else {}
        if self.source.dropped:
            meta[artifact.DROPPED] = sorted(self.source.dropped)
        began = time.perf_counter()
        encoded = artifact.encode(entries, meta, self.coder, self.compressed)
        while bulky := self._bulky(entries, encoded):
            entries |= {
                n: kept_entry(self.source.tensors[n], TensorPlan(None, "coded it would take more"))
                for first in bulky
                for n in self._stored_with(first, entries)
            }
            encoded = artifact.encode(entries, meta, self.coder, self.compressed)
        return Trial(step, entries, encoded, time.perf_counter() - began)

    def _bulky(self, entries: Mapping[str, Entry], encoded: Encoded) -> list[str]:
        """Tensors whose codes take more bytes than they do: at a large budget steps finer than their own. Not where the
        step was asked for."""
        free = {name: self.source.tensors[name] for name, plan in self.plans.items() if not plan.fixed}
        sizes = {name: t.numel() * t.element_size() for name, t in free.items()}
        coded = {n: e for n, e in entries.items() if e.planes and e.part_of is None and sizes.get(n)}
        taken = {n: sum(encoded.tensor_bits[each] for each in self._stored_with(n, entries)) for n in coded}
        return [
            n for n, bits in taken.items() if bits >= 8 * sum(sizes[each] for each in self._stored_with(n, entries))
        ]

    def _stored_with(self, name: str, entries: Mapping[str, Entry]) -> list[str]:
        """The names of those whose rows are in one matrix with a tensor's, itself first."""
        return [name, *(each for each in self.together(name)[1:] if entries[each].part_of == name)]

    def _aliases(self, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        return {
            name: Entry(entries[target].dtype, entries[target].shape, alias=target)
            for name, target in self.source.aliases.items()
            if target in entries
        }

    def _entries(self, name: str, step: float, ready: Sequence[Plane] | None) -> dict[str, Entry]:
        """Of a tensor, or of all that are rounded with it. ready: of each slice what a device rounded beside others."""
        plan, names = self.plans[name], self.together(name)
        with enough_memory(name, self.source.tensors[name]):
            self.hurry(self.weights(names))
            if plan.settings is not None:
                if form := self.kept_form(name, step):
                    plan = TensorPlan(None, "worth its bytes", form.cast)
                else:
                    return self.entries_of(name, self.quantize(name, step, ready), step)
            return {each: kept_entry(self.source.tensors[each], plan) for each in names}

    def entries_of(self, name: str, planes: Sequence[Plane], step: float) -> dict[str, Entry]:
        """What the planes of a leader make, of it and of those that are rounded with it."""
        names = self.together(name)
        if len(names) > 1:
            return self._stacked_entries(names, planes[0], step)
        return {name: self.entry_of(name, planes, step)}

    def _stacked_entries(self, names: Sequence[str], whole: Plane, step: float) -> dict[str, Entry]:
        """Each tensor's rows of a stack."""
        made, start = dict[str, Entry](), 0
        for name in names:
            rows = slice(start, start := start + len(self.source.tensors[name]))
            made[name] = replace(
                self.entry_of(name, [whole.part(rows)], step), part_of=names[0] if rows.start else None
            )
        if all(entry.planes for entry in made.values()):
            return made
        why = next(entry.note for entry in made.values() if not entry.planes)
        return {name: kept_entry(self.source.tensors[name], TensorPlan(None, why)) for name in names}

    def entry_of(self, name: str, planes: Sequence[Plane], step: float) -> Entry:
        """What a tensor's planes make, or the tensor itself where they would leave its dtype's range."""
        tensor, plan = self.source.tensors[name], self.plans[name]
        dtype = checkpoint.dtype_name(tensor.dtype)
        if overflows(tensor, planes):
            return kept_entry(tensor, TensorPlan(None, f"rounded, it would pass {dtype}'s range"))
        return Entry(dtype, tuple(tensor.shape), planes=tuple(planes), note=describe(plan.at(step)))

    def quantize(self, name: str, step: float, ready: Sequence[Plane] | None = None) -> list[Plane]:
        """Every slice of a matrix, bank or convolution weight by the method of its plan; ready: what it would make."""
        slices = self._stack(name)[0]
        return [self.round(name, i, step, made) for i, made in enumerate(ready or [None] * slices)]

    def round(self, name: str, index: int, step: float, ready: Plane | None = None) -> Plane:
        """One slice of them."""
        if self.work and (kept := self.work.plane(name, index, step)):
            return replace(kept, codes=self._kept(kept.codes))
        settings = self.plans[name].at(step)
        method, (weight, known) = METHODS[settings.method], self.slice_of(name, index)
        if ready is not None:
            plane = ready
        elif method.staged is None:
            with self._damping_of(name):
                plane = method.quantize(weight, known, settings)
        else:
            plane = method.staged.finish(weight, self.prepare(name)[index], settings)
        plane = replace(plane, codes=self._kept(narrowed(plane.codes)))  # several trials are held at once
        self._worked_on(name)
        if self.work:
            self.work.keep_plane(name, index, step, plane)
        return plane

    def kept_form(self, name: str, step: float) -> Form | None:
        """What the market keeps a tensor as at a position of the knob; None: its codes are the better buy."""
        plan = self.plans[name]
        if not plan.market or METHODS[plan.at(step).method].staged is None:
            return None
        tensor = self._tensor(name)
        if name not in self.least:
            self.least[name] = least_bits(tensor)
        if name in self.foreseen:  # a step half as large takes a bit a weight more at most
            at, bits = self.foreseen[name]
            if surely_coded(tensor, bits + tensor.numel() * max(math.log2(at / step), 0.0), self.least[name]):
                return None
        bits = self._code_bits(name, step)
        if surely_coded(tensor, bits, self.least[name]):
            return None
        if name not in self.stalls:
            slices = len(self.curvatures[name])
            self.stalls[name] = stall_of(tensor, [c for c in self._known(name, slices) if c is not None])
        return self.stalls[name].best(bits, plan.at(step).step)

    def _code_bits(self, name: str, step: float) -> float:
        """About what the codes of a tensor would take, where its method foresees them."""
        bits = sum(self.slice_bits(name, index, step) for index in range(self._stack(name)[0]))
        self.foreseen[name] = (step, bits)
        return bits

    def prepare(self, name: str) -> list[Any]:
        """What of the work does not depend on the knob, done once a tensor; [] where the method has no such part."""
        settings = self.plans[name].at(1.0)
        staged = METHODS[settings.method].staged
        if staged is None:
            return []
        if name not in self.prepared:
            known = name in self.curvatures  # else there are no factors to keep
            with self._damping_of(name):
                made = (staged.prepare(*self.slice_of(name, index), settings) for index in range(self._stack(name)[0]))
                self.prepared[name] = [self._shelved(each) if known else each for each in made]
            self._worked_on(name)
        return self.prepared[name]

    def matrix_of(self, name: str) -> tuple[int, int]:
        """(rows, columns) of each matrix that is rounded under a name."""
        _, rows, cols = self._stack(name)
        return rows, cols

    def _stack(self, name: str) -> tuple[int, int, int]:
        """(slices, rows, columns) that are rounded under a name."""
        _, *rest = self.source.tensors[name].shape
        rows = sum(len(self.source.tensors[each]) for each in self.together(name))
        shape = matrix_shape((rows, *rest))
        assert shape is not None
        return shape

    def slice_of(self, name: str, index: int) -> tuple[Tensor, MatrixCurvature | None]:
        """([R, C] as its method takes it, its curvature) of one of them: no copy is made of the others."""
        shape, settings = self._stack(name), self.plans[name].settings
        weight = self._tensor(name).reshape(shape)[index]
        as_it_is = settings is not None and METHODS[settings.method].any_dtype and weight.is_floating_point()
        return weight if as_it_is else weight.to(torch.float32), self._known(name, shape[0])[index]

    @cached_property
    def _is_large(self) -> bool:
        """Whether what is kept of each matrix lies in a file."""
        return self.weights(self.plans) >= scratch.MANY

    def _kept(self, array: NDArray[Kind]) -> NDArray[Kind]:
        return scratch.kept(array) if self._is_large else array

    def _worked_on(self, name: str) -> None:
        """Let go of what was freed, now and then, where that is much."""
        if self._is_large:
            factors = sum(known.num_bytes for known in self.curvatures.get(name, []) if known)
            scratch.worked_on(4 * NUMBERS * math.prod(self.matrix_of(name)) + factors)

    def _shelved(self, prepared: Any) -> Any:
        """What a method prepared, its tensors kept."""
        if isinstance(prepared, Tensor) and prepared.device.type == "cpu":
            return torch.from_numpy(self._kept(prepared.numpy()))
        if is_dataclass(prepared) and not isinstance(prepared, type):
            parts = {field.name: getattr(prepared, field.name) for field in fields(prepared) if field.init}
            return replace(prepared, **{name: self._shelved(part) for name, part in parts.items()})
        return prepared

    def _tensor(self, name: str) -> Tensor:
        """A tensor, or the matrix of all that are rounded with it."""
        parts = [self.source.tensors[each].detach() for each in self.together(name)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _known(self, name: str, slices: int) -> Sequence[MatrixCurvature | None]:
        """The curvature of its slices."""
        if name in self.stacks:
            return [stacked([known for each in self.together(name) if (known := self.curvatures[each][0]) is not None])]
        return self.curvatures.get(name, [None] * slices)

    @contextmanager
    def _damping_of(self, name: str) -> Iterator[None]:
        with watched() as shares:
            yield
        if shares:
            self.damping[name] = max(shares)

    def hurry(self, weights: int) -> None:
        """Raise OutOfTime where quantizing so many weights would not end in time."""
        if time.perf_counter() + weights * self.seconds_per_weight > self.until:
            raise OutOfTime

    def foresees(self) -> bool:
        """Whether every method of the plans can tell an expected size."""
        return all(METHODS[method].staged is not None for method in self.methods())

    def kept_bytes(self) -> int:
        """What an artifact of the kept tensors alone takes: cast, compressed and described as in any other."""
        return replace(self.only(self.kept), progress=silent).run(1.0).size

    def expected_bytes(self, step: float) -> float:
        """About what the quantized tensors would add to `kept_bytes`, without side information, where `foresees`."""
        return sum(self.expected_bits(step).values()) / 8

    def expected_bits(self, step: float) -> dict[str, float]:
        """About what the codes of each quantized tensor would take, where `foresees`."""
        if self.crew and self.crew.knows(self):
            return self.crew.expected_bits(self, step)
        return self.expected_bits_of(self.leaders, step)

    def expected_bits_of(self, leaders: Sequence[str], step: float) -> dict[str, float]:
        """The same of some of them."""
        with one_thread_each() as pool:
            return dict(zip(leaders, pool.map(lambda name: self._bits(name, step), leaders), strict=True))

    def _bits(self, name: str, step: float) -> float:
        self.hurry(0)
        with enough_memory(name, self.source.tensors[name]):
            bits = self._code_bits(name, step)
            form = self.kept_form(name, step)
            return bits if form is None else form.bits

    def slice_bits(self, name: str, index: int, step: float) -> float:
        """About what the codes of one slice would take, where `foresees`."""
        settings = self.plans[name].at(step)
        staged = METHODS[settings.method].staged
        assert staged is not None
        return staged.expected_bits(self.slice_of(name, index)[0], self.prepare(name)[index], settings)

    def damage(self, name: str, entry: Entry) -> tuple[float | None, float | None]:
        """(‖W − Ŵ‖/‖W‖, predicted rise of the loss in nats per token), None where there is none or it is not known.

        A cast has no error to speak of, but a rise where the curvature is known.
        """
        return of_entry(entry, self.source.tensors.get(name), self.curvatures.get(name))

    def rise(self, trial: Trial) -> float:
        """Predicted rise of the loss over all tensors whose curvature is known, nats per token."""
        return sum(self.damage(name, entry)[1] or 0.0 for name, entry in trial.entries.items())


def _is_float(dtype: str) -> bool:
    return bool(getattr(torch, dtype).is_floating_point)


def kept_entry(tensor: Tensor, plan: TensorPlan) -> Entry:
    """A tensor that is not quantized: codes where its integers code better one by one, else bytes, cast where planned."""
    dtype, shape = checkpoint.dtype_name(tensor.dtype), tuple(tensor.shape)
    if plan.integers:
        return Entry(dtype, shape, planes=(integer_plane(tensor),), note=plan.kept)
    stored = tensor.to(getattr(torch, plan.cast)) if plan.cast else tensor
    cast = checkpoint.dtype_name(stored.dtype)
    return Entry(dtype, shape, raw=checkpoint.to_bytes(stored), stored=cast if cast != dtype else None, note=plan.kept)


def integer_plane(tensor: Tensor) -> Plane:
    """The values of an integer tensor as codes without scales, one row a first index."""
    matrix = tensor.reshape(tensor.shape[0], -1) if tensor.dim() > 1 else tensor.reshape(-1, 1)
    return Plane(narrowed(matrix.to(torch.int32).numpy()))


@contextmanager
def enough_memory(name: str, tensor: Tensor) -> Iterator[None]:
    """Turn whatever says that memory ran out into a MemoryLimitError that names the tensor."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryLimitError(
            f"not enough memory to pack {name!r} {list(tensor.shape)}: free some, or let fewer cores work at a time "
            "(taskset -c 0 pgolf ...)"
        ) from error
