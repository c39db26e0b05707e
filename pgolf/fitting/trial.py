"""One pack at one position of the knob: every tensor quantized, coded, and its damage predicted.

What will surprise you:
* Every matrix is quantized on one thread, several matrices at a time: the bytes then do not depend on thread counts.
* What does not depend on the knob (factored curvature) is worked out once and kept for all trials.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.common.threads import workers
from pgolf.errors import MemoryLimitError, is_out_of_memory
from pgolf.fitting import plan
from pgolf.fitting.search import OutOfTime
from pgolf.models import checkpoint
from pgolf.models.checkpoint import Checkpoint
from pgolf.packer.coder.spread import narrowed
from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import Encoded, Entry
from pgolf.packer.plane import Plane
from pgolf.quant import METHODS, Settings
from pgolf.quant.curvature.factor import watched
from pgolf.quant.curvature.loss import loss_rise
from pgolf.quant.curvature.store import MatrixCurvature

Progress = Callable[[str, int, int], None]  # (what, done, total)
NEAR = 0.5  # of the largest number of a dtype: rounding moves no value further at any step worth having


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


@dataclass(frozen=True)
class Job:
    """A checkpoint with its curvature (name -> one for each slice), ready to be packed at any position of the knob.

    damping: name -> share of the mean diagonal that had to be added to its curvature before it could be factored.
    until: time.perf_counter() at which the codes must be there; seconds_per_weight: what a weight takes a thread.
    """

    source: Checkpoint
    curvatures: dict[str, list[MatrixCurvature | None]]
    progress: Progress
    coder: str
    prepared: dict[str, list[Any]] = field(default_factory=dict)
    damping: dict[str, float] = field(default_factory=dict)
    until: float = math.inf
    seconds_per_weight: float = 0.0

    def run(self, plans: Mapping[str, plan.TensorPlan], step: float) -> Trial:
        """Quantize everything at one position of the knob and code it. Raises OutOfTime as soon as `until` is lost."""
        names = sorted(plans, key=lambda n: -self.source.tensors[n].numel())  # the longest first: threads end together
        entries: dict[str, Entry] = {}
        with one_thread_each() as pool:
            futures = {name: pool.submit(self._entry, name, plans[name], step) for name in names}
            for done, name in enumerate(names):
                entries[name] = futures[name].result()
                self.progress("quantize", done + 1, len(names))
        entries |= {
            name: Entry(entries[target].dtype, entries[target].shape, alias=target)
            for name, target in self.source.aliases.items()
            if target in entries
        }
        meta = {"config": self.source.config} if self.source.config else {}
        began = time.perf_counter()
        encoded = artifact.encode(entries, meta, self.coder)
        while bulky := self._bulky(entries, encoded):
            entries |= {name: self._as_it_is(name, "coded it would take more") for name in bulky}
            encoded = artifact.encode(entries, meta, self.coder)
        return Trial(step, entries, encoded, time.perf_counter() - began)

    def _bulky(self, entries: Mapping[str, Entry], encoded: Encoded) -> list[str]:
        """Tensors whose codes take more bytes than they do: at a large budget steps finer than their own."""
        sizes = {name: t.numel() * t.element_size() for name, t in self.source.tensors.items()}
        bits = encoded.tensor_bits
        return [n for n, e in entries.items() if e.planes and sizes[n] and bits[n] >= 8 * sizes[n]]

    def _as_it_is(self, name: str, why: str) -> Entry:
        tensor = self.source.tensors[name]
        dtype = checkpoint.dtype_name(tensor.dtype)
        return Entry(dtype, tuple(tensor.shape), raw=checkpoint.to_bytes(tensor), note=why)

    def _entry(self, name: str, tensor_plan: plan.TensorPlan, step: float) -> Entry:
        with enough_memory(name, self.source.tensors[name]):
            return self._packed(name, tensor_plan, step)

    def _packed(self, name: str, tensor_plan: plan.TensorPlan, step: float) -> Entry:
        tensor = self.source.tensors[name]
        self.hurry(tensor.numel())
        dtype, shape = checkpoint.dtype_name(tensor.dtype), tuple(tensor.shape)
        if tensor_plan.settings is None and tensor_plan.integers:
            return Entry(dtype, shape, planes=(integer_plane(tensor),), note=tensor_plan.kept)
        if tensor_plan.settings is None:
            stored = tensor.to(getattr(torch, tensor_plan.cast)) if tensor_plan.cast else tensor
            cast = checkpoint.dtype_name(stored.dtype)
            raw = checkpoint.to_bytes(stored)
            return Entry(dtype, shape, raw=raw, stored=cast if cast != dtype else None, note=tensor_plan.kept)
        settings = tensor_plan.at(step)
        planes = self.quantize(name, settings)
        if overflows(tensor, planes):
            return self._as_it_is(name, f"rounded, it would pass {dtype}'s range")
        return Entry(dtype, shape, planes=tuple(planes), note=describe(settings))

    def quantize(self, name: str, settings: Settings) -> list[Plane]:
        """Every slice of a matrix, bank or convolution weight by the method of `settings`."""
        method, slices = METHODS[settings.method], self._slices(name)
        if method.staged is None:
            with self._damping_of(name):
                planes = [method.quantize(w, c, settings) for w, c in slices]
        else:
            finish, prepared = method.staged.finish, self.prepare(name, settings)
            planes = [finish(w, p, settings) for (w, _), p in zip(slices, prepared, strict=True)]
        return [replace(plane, codes=narrowed(plane.codes)) for plane in planes]  # several trials are held at once

    def _slices(self, name: str) -> list[tuple[Tensor, MatrixCurvature | None]]:
        tensor = self.source.tensors[name]
        shape = plan.matrix_shape(tuple(tensor.shape))
        assert shape is not None
        known = self.curvatures.get(name, [None] * shape[0])
        return list(zip(tensor.detach().to(torch.float32).reshape(shape), known, strict=True))

    def prepare(self, name: str, settings: Settings) -> list[Any]:
        """What of the work does not depend on the knob, done once a tensor."""
        staged = METHODS[settings.method].staged
        assert staged is not None
        if name not in self.prepared:
            with self._damping_of(name):
                self.prepared[name] = [staged.prepare(w, c, settings) for w, c in self._slices(name)]
        return self.prepared[name]

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

    def foresees(self, plans: Mapping[str, plan.TensorPlan]) -> bool:
        """Whether every method of the plans can tell an expected size."""
        used = {p.settings.method for p in plans.values() if p.settings is not None}
        return all(METHODS[method].staged is not None for method in used)

    def expected_bytes(self, plans: Mapping[str, plan.TensorPlan], step: float) -> float:
        """About what an artifact would take, without side information, where `foresees`."""
        names = [name for name, p in plans.items() if p.settings is not None]
        kept = sum(t.numel() * t.element_size() for name, t in self.source.tensors.items() if name not in names)
        return sum(self.expected_bits(plans, step).values()) / 8 + kept

    def expected_bits(self, plans: Mapping[str, plan.TensorPlan], step: float) -> dict[str, float]:
        """About what the codes of each quantized tensor would take, where `foresees`."""

        def bits(name: str) -> float:
            self.hurry(0)
            settings = plans[name].at(step)
            staged = METHODS[settings.method].staged
            assert staged is not None
            with enough_memory(name, self.source.tensors[name]):
                prepared = self.prepare(name, settings)
                return sum(
                    staged.expected_bits(w, p, settings) for (w, _), p in zip(self._slices(name), prepared, strict=True)
                )

        names = [name for name, p in plans.items() if p.settings is not None]
        with one_thread_each() as pool:
            return dict(zip(names, pool.map(bits, names), strict=True))

    def damage(self, name: str, entry: Entry) -> tuple[float | None, float | None]:
        """(‖W − Ŵ‖/‖W‖, predicted rise of the loss in nats per token), None where there is none or it is not known."""
        if entry.planes is None or not self.source.tensors[name].is_floating_point():
            return None, None
        shape = plan.matrix_shape(entry.shape)
        assert shape is not None
        original = self.source.tensors[name].to(torch.float32).reshape(shape)
        errors = [torch.from_numpy(p.reconstruct()) - w for p, w in zip(entry.planes, original, strict=True)]
        norm = float(original.double().square().sum())
        error = math.sqrt(sum(float(e.double().square().sum()) for e in errors) / norm) if norm else 0.0
        known = self.curvatures.get(name)
        if known is None:
            return error, None
        return error, sum(loss_rise(e, c) for e, c in zip(errors, known, strict=True) if c is not None)

    def rise(self, trial: Trial) -> float:
        """Predicted rise of the loss over all tensors whose curvature is known, nats per token."""
        return sum(self.damage(name, entry)[1] or 0.0 for name, entry in trial.entries.items())


def overflows(tensor: Tensor, planes: Sequence[Plane]) -> bool:
    """Whether what the codes of a tensor give is not finite in its dtype: float16 ends at 65,504, float8 at 448."""
    if tensor.dtype in {torch.float32, torch.float64} or not tensor.numel():
        return False
    if float(tensor.detach().float().abs().max()) < NEAR * torch.finfo(tensor.dtype).max:
        return False
    with np.errstate(over="ignore"):
        made = [torch.from_numpy(plane.reconstruct()).to(tensor.dtype).float() for plane in planes]
    return not all(bool(torch.isfinite(matrix).all()) for matrix in made)


def describe(settings: Settings) -> str:
    """The settings that matter, for the report: "gptq int6 k=12.85"."""
    words = [settings.method]
    if settings.method == "auto" and settings.trellis:
        words.append(f"trellis={settings.trellis}")
    if settings.method != "auto":
        words.append(f"int{settings.bits}")
    if settings.method in {"sdclip", "hessian-sdclip", "gptq"}:
        words.append(f"k={(settings.k or 0) * settings.step:.4g}")
    elif settings.step != 1.0:
        words.append(f"step={settings.step:.4g}")
    return " ".join(words)


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


@contextmanager
def one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """A pool over the cores, torch kept to one thread per task: results must not depend on the number of threads."""
    with one_thread(), ThreadPoolExecutor(workers(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)  # after a failure nothing more is begun
            raise


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on a single thread, and as many as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
