"""One pack at one position of the knob: every tensor quantized, coded, and its damage predicted.

What will surprise you:
* Every matrix is quantized on one thread, several matrices at a time: the bytes then do not depend on thread counts.
* What does not depend on the knob (factored curvature) is worked out once and kept for all trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pgolf import checkpoint, plan
from pgolf.checkpoint import Checkpoint
from pgolf.packer import artifact
from pgolf.packer.artifact import Encoded, Entry
from pgolf.packer.plane import Plane
from pgolf.packer.spread import narrowed
from pgolf.packer.threads import workers
from pgolf.quant import METHODS, Settings
from pgolf.quant.curvature import MatrixCurvature

Progress = Callable[[str, int, int], None]  # (what, done, total)


@dataclass(frozen=True)
class Trial:
    """What one position of the knob gave."""

    step: float
    entries: dict[str, Entry]
    encoded: Encoded

    @property
    def size(self) -> int:
        """Bytes of the artifact."""
        return len(self.encoded.data)


@dataclass(frozen=True)
class Job:
    """A checkpoint with its curvature (name -> one for each slice), ready to be packed at any position of the knob."""

    source: Checkpoint
    curvatures: dict[str, list[MatrixCurvature | None]]
    progress: Progress
    coder: str
    prepared: dict[str, list[Any]] = field(default_factory=dict)

    def run(self, plans: Mapping[str, plan.TensorPlan], step: float) -> Trial:
        """Quantize everything at one position of the knob and code it."""
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
        }
        meta = {"config": self.source.config} if self.source.config else {}
        return Trial(step, entries, artifact.encode(entries, meta, self.coder))

    def _entry(self, name: str, tensor_plan: plan.TensorPlan, step: float) -> Entry:
        tensor = self.source.tensors[name]
        dtype, shape = checkpoint.dtype_name(tensor.dtype), tuple(tensor.shape)
        if tensor_plan.settings is None:
            stored = tensor.to(getattr(torch, tensor_plan.cast)) if tensor_plan.cast else tensor
            cast = checkpoint.dtype_name(stored.dtype)
            raw = checkpoint.to_bytes(stored)
            return Entry(dtype, shape, raw=raw, stored=cast if cast != dtype else None, note=tensor_plan.kept)
        settings = tensor_plan.at(step)
        planes = self._quantize(name, settings)
        return Entry(dtype, shape, planes=tuple(planes), note=describe(settings))

    def _quantize(self, name: str, settings: Settings) -> list[Plane]:
        """Every slice of a matrix, bank or convolution weight by the method of `settings`."""
        method, slices = METHODS[settings.method], self._slices(name)
        if method.staged is None:
            planes = [method.quantize(w, c, settings) for w, c in slices]
        else:
            finish, prepared = method.staged.finish, self._prepared(name, settings)
            planes = [finish(w, p, settings) for (w, _), p in zip(slices, prepared, strict=True)]
        return [replace(plane, codes=narrowed(plane.codes)) for plane in planes]  # several trials are held at once

    def _slices(self, name: str) -> list[tuple[Tensor, MatrixCurvature | None]]:
        tensor = self.source.tensors[name]
        shape = plan.matrix_shape(tuple(tensor.shape))
        assert shape is not None
        known = self.curvatures.get(name, [None] * shape[0])
        return list(zip(tensor.detach().to(torch.float32).reshape(shape), known, strict=True))

    def _prepared(self, name: str, settings: Settings) -> list[Any]:
        """What of the work does not depend on the knob, done once a tensor."""
        staged = METHODS[settings.method].staged
        assert staged is not None
        if name not in self.prepared:
            self.prepared[name] = [staged.prepare(w, c, settings) for w, c in self._slices(name)]
        return self.prepared[name]

    def expected_bytes(self, plans: Mapping[str, plan.TensorPlan], step: float) -> float | None:
        """About what an artifact would take, None where the method of some tensor cannot tell."""

        def bits(name: str) -> float:
            settings = plans[name].at(step)
            staged = METHODS[settings.method].staged
            assert staged is not None
            prepared = self._prepared(name, settings)
            return sum(
                staged.expected_bits(w, p, settings) for (w, _), p in zip(self._slices(name), prepared, strict=True)
            )

        names = [name for name, p in plans.items() if p.settings is not None]
        if any(METHODS[plans[name].at(step).method].staged is None for name in names):
            return None
        with one_thread_each() as pool:
            quantized = sum(pool.map(bits, names)) / 8
        return quantized + sum(t.numel() * t.element_size() for n, t in self.source.tensors.items() if n not in names)

    def damage(self, name: str, entry: Entry) -> tuple[float | None, float | None]:
        """(‖W − Ŵ‖/‖W‖, predicted rise of the loss in nats per token), None where there is none or it is not known."""
        if entry.planes is None:
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


@contextmanager
def one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """A pool over the cores, torch kept to one thread per task: results must not depend on the number of threads."""
    with (
        one_thread(),
        ThreadPoolExecutor(workers(), initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        yield pool


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on a single thread, and as many as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def loss_rise(error: Tensor, curvature: MatrixCurvature) -> float:
    """½·tr(G E H Eᵀ): the predicted rise of the loss in nats per token for a weight error [R, C]."""
    left = error @ curvature.H
    if curvature.G is None:
        return 0.5 * float((left * error).double().sum())
    right = curvature.G[:, None] * error if curvature.G.dim() == 1 else curvature.G @ error
    return 0.5 * float((left * right).double().sum())
