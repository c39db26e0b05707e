"""The whole story: checkpoint → plan → planes → artifact, the search for the budget, and the way back.

What will surprise you:
* A budget is met by one number, the knob `step`: it multiplies the step size of every tensor whose step nobody fixed,
  and sizes come from the coder itself, never from an estimate.
* Every matrix is quantized on one thread, several matrices at a time: the bytes then do not depend on thread counts.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pgolf import checkpoint, plan, search
from pgolf.checkpoint import Checkpoint
from pgolf.errors import BudgetError, CurvatureError, UsageError
from pgolf.packer import artifact
from pgolf.packer.artifact import Encoded, Entry
from pgolf.packer.code import counted_bytes
from pgolf.packer.plane import Plane
from pgolf.quant import METHODS
from pgolf.quant.curvature import MatrixCurvature
from pgolf.quant.settings import HALF, LOG_SCALE, Settings
from pgolf.report import Report, TensorRow
from pgolf.sizes import parse_size, show_size

if TYPE_CHECKING:
    from pgolf.quant.curvature import Curvature

Progress = Callable[[str, int, int], None]  # (what, done, total)

CLOSE = 0.001  # a search ends when the artifact is this close below the budget...
CLOSE_BYTES = 200  # ...or this close
EXPECTATIONS = 12  # bisections of the expected size: to a hundredth of an octave
RISE_OCTAVES = 0.02  # a target rise is met to 1.4%


def pack(
    model: nn.Module | Mapping[str, Tensor] | Checkpoint,
    path: str | Path | None,
    *,
    budget: int | str | None = None,
    target_rise: float | None = None,
    curvature: Curvature | None = None,
    method: str | None = None,
    rules: Sequence[str] = (),
    settings: Settings | None = None,
    code: Sequence[str | Path] = (),
    coder: str = "rans",
    progress: Progress | None = None,
) -> Report:
    """Pack a model into an artifact at `path` (replaced whole, or left as it was when anything goes wrong).

    model: a module, a state dict, or `pgolf.checkpoint.read(file)`. path: None writes nothing; the bytes are in the report.
    budget: bytes or "16MB", for the artifact plus the `code` files as a submission counts them; target_rise: instead of
    a budget, the predicted rise of the loss in nats per token; with neither the settings are used as they are.
    method: a name in `pgolf.quant.METHODS`. rules: as `--set`; settings: for what no rule speaks of.
    Raises BudgetError (does not fit), CheckpointError, CurvatureError, UsageError.
    """
    began = time.perf_counter()
    if budget is not None and target_rise is not None:
        raise UsageError("give a budget or a target rise, not both")
    source = _as_checkpoint(model)
    limit = None if budget is None else parse_size(budget)
    code_bytes = {str(c): counted_bytes(c) for c in code}
    job = _Job(source, _curvatures(source, curvature), progress or (lambda *_: None), coder)
    plans = plan.make(
        source.tensors,
        method=method or default_method(curvature),
        rules=[plan.parse_rule(r) for r in rules],
        search=limit is not None or target_rise is not None,
        base=settings or Settings(scale_per_octave=LOG_SCALE if coder == "rans" else HALF),
    )
    if limit is not None:
        trial = _fill(job, plans, limit, sum(code_bytes.values()))
    elif target_rise is not None:
        trial = _reach(job, plans, target_rise)
    else:
        trial = job.run(plans, 1.0)
    report = _report(job, plans, trial, limit, code_bytes, began)
    if path is not None:
        artifact.write(Path(path), trial.encoded.data)
    return report


def default_method(curvature: Curvature | None) -> str:
    """The best method for what is known of the model."""
    return "auto" if "auto" in METHODS else "gptq" if curvature is not None else "sdclip"


def _as_checkpoint(model: nn.Module | Mapping[str, Tensor] | Checkpoint) -> Checkpoint:
    if isinstance(model, Checkpoint):
        return model
    return checkpoint.from_mapping(model.state_dict(keep_vars=False) if isinstance(model, nn.Module) else model)


def _curvatures(source: Checkpoint, curvature: Curvature | None) -> dict[str, list[MatrixCurvature | None]]:
    """Per tensor, one for each slice. Raises CurvatureError where shapes differ: it belongs to another model."""
    if curvature is None:
        return {}
    found = {}
    for name, tensor in source.tensors.items():
        mine = curvature.get(name)
        shape = plan.matrix_shape(tuple(tensor.shape))
        if mine is None or shape is None:
            continue
        if len(mine) != shape[0] or any(m is not None and m.H.shape[-1] != shape[2] for m in mine):
            raise CurvatureError(f"the curvature of {name!r} has another shape: it was collected on another model")
        found[name] = [m and MatrixCurvature(m.H.cpu(), None if m.G is None else m.G.cpu()) for m in mine]
    if not found:
        raise CurvatureError("the curvature names none of the checkpoint's tensors: it was collected on another model")
    return found


@dataclass(frozen=True)
class _Trial:
    step: float
    entries: dict[str, Entry]
    encoded: Encoded

    @property
    def size(self) -> int:
        return len(self.encoded.data)


@dataclass(frozen=True)
class _Job:
    source: Checkpoint
    curvatures: dict[str, list[MatrixCurvature | None]]
    progress: Progress
    coder: str
    prepared: dict[str, list[Any]] = field(default_factory=dict)

    def run(self, plans: Mapping[str, plan.TensorPlan], step: float) -> _Trial:
        """Quantize everything at one position of the knob and code it."""
        names = sorted(plans, key=lambda n: -self.source.tensors[n].numel())  # the longest first: threads end together
        entries: dict[str, Entry] = {}
        with _one_thread_each() as pool:
            futures = {name: pool.submit(self._entry, name, plans[name], step) for name in names}
            for done, name in enumerate(names):
                entries[name] = futures[name].result()
                self.progress("quantize", done + 1, len(names))
        entries |= {
            name: Entry(entries[target].dtype, entries[target].shape, alias=target)
            for name, target in self.source.aliases.items()
        }
        meta = {"config": self.source.config} if self.source.config else {}
        return _Trial(step, entries, artifact.encode(entries, meta, self.coder))

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
        method = METHODS[settings.method]
        slices = self._slices(name)
        if method.staged is None:
            return [method.quantize(w, c, settings) for w, c in slices]
        prepared = self._prepared(name, settings)
        return [method.staged.finish(w, p, settings) for (w, _), p in zip(slices, prepared, strict=True)]

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
        with _one_thread_each() as pool:
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

    def rise(self, trial: _Trial) -> float:
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
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """A pool over the cores, torch kept to one thread per task: results must not depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(os.cpu_count() or 1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _fill(job: _Job, plans: dict[str, plan.TensorPlan], limit: int, code_bytes: int) -> _Trial:
    """The finest step whose artifact is at most `limit` bytes together with the code.

    Raises BudgetError with the smallest reachable size and what dominates it.
    """
    room = limit - code_bytes
    if room <= 0:
        raise BudgetError(f"the code alone counts {show_size(code_bytes)}, the budget is {show_size(limit)}")
    searched = [name for name, p in plans.items() if p.searched]
    if not searched:
        trial = job.run(plans, 1.0)
        if trial.size > room:
            raise _does_not_fit(trial, room, "every step size is fixed by --set")
        return trial

    def run(step: float) -> search.Trial[_Trial]:
        trial = job.run(plans, step)
        job.progress("fill the budget", min(trial.size, room), room)
        return search.Trial(step, trial.size, trial)

    outcome = search.largest_that_fits(
        run,
        room,
        start=_promising(job, plans, room),
        finest=max(plans[name].finest for name in searched),
        per_octave=sum(job.source.tensors[name].numel() for name in searched) / 8,
        tolerance=max(CLOSE * room, CLOSE_BYTES),
    )
    if outcome.best is None:
        coarsest = outcome.last.step >= search.COARSEST
        why = (
            "even the coarsest steps are too many bytes"
            if coarsest
            else f"{outcome.trials} trials found none that fits"
        )
        raise _does_not_fit(outcome.last.result, room, why)
    return outcome.best.result


def _promising(job: _Job, plans: dict[str, plan.TensorPlan], room: int) -> float:
    """A step that should about fill `room`, from expected sizes where the method can tell, else 1."""
    low, high = -12.0, 12.0  # log2 of the step
    for _ in range(EXPECTATIONS):
        middle = (low + high) / 2
        expected = job.expected_bytes(plans, 2**middle)
        if expected is None:
            return 1.0
        low, high = (middle, high) if expected > room else (low, middle)
    return 2**high


def _reach(job: _Job, plans: dict[str, plan.TensorPlan], target_rise: float) -> _Trial:
    """The coarsest step whose predicted rise of the loss is at most `target_rise`; the rise goes with its square.

    Raises UsageError without curvature: nothing can be predicted then.
    """
    if not job.curvatures or not any(p.searched for p in plans.values()):
        raise UsageError("a target rise needs curvature (--model or --curvature) and a step that is not fixed")
    finest = max(p.finest for p in plans.values() if p.searched)

    def run(inverse_step: float) -> search.Trial[_Trial]:
        trial = job.run(plans, 1 / inverse_step)
        rise = max(job.rise(trial), 1e-300)
        return search.Trial(inverse_step, math.log2(rise), trial)

    outcome = search.largest_that_fits(
        run, math.log2(target_rise), start=1.0, finest=1 / search.COARSEST, per_octave=2.0, tolerance=RISE_OCTAVES
    )
    if outcome.best is None or outcome.best.result.step < finest:
        raise BudgetError(f"a predicted rise of {target_rise:.3g} nats per token is out of this method's reach")
    return outcome.best.result


def _does_not_fit(trial: _Trial, room: int, why: str) -> BudgetError:
    largest = sorted(trial.encoded.tensor_bits.items(), key=lambda item: -item[1])[:3]
    names = ", ".join(f"{name} {show_size(bits / 8)}" for name, bits in largest)
    return BudgetError(
        f"does not fit: {show_size(room)} are left for the model and the smallest reachable is {show_size(trial.size)} "
        f"({why}); most of it: {names}"
    )


def _report(
    job: _Job,
    plans: Mapping[str, plan.TensorPlan],
    trial: _Trial,
    limit: int | None,
    code_bytes: dict[str, int],
    began: float,
) -> Report:
    return Report(
        rows=[_row(job, name, trial) for name in sorted(trial.entries)],
        data=trial.encoded.data,
        code_bytes=code_bytes,
        budget=limit,
        step=trial.step if any(p.searched for p in plans.values()) else None,
        coder=job.coder,
        notes=list(job.source.notes),
        seconds=time.perf_counter() - began,
    )


def _row(job: _Job, name: str, trial: _Trial) -> TensorRow:
    entry = trial.entries[name]
    error, rise = job.damage(name, entry)
    if entry.alias is not None:
        method, kept = f"shared with {entry.alias}", ""
    elif entry.planes is None:
        method, kept = f"kept as {entry.stored or entry.dtype}", entry.note
    else:
        method, kept = entry.note, ""
    return TensorRow(
        name=name,
        shape=list(entry.shape),
        dtype=entry.dtype,
        method=method,
        kept=kept,
        weights=0 if entry.alias is not None else math.prod(entry.shape),
        num_bytes=trial.encoded.tensor_bits.get(name, 0.0) / 8,
        error=error,
        loss_rise=rise,
    )


def loss_rise(error: Tensor, curvature: MatrixCurvature) -> float:
    """½·tr(G E H Eᵀ): the predicted rise of the loss in nats per token for a weight error [R, C]."""
    left = error @ curvature.H
    if curvature.G is None:
        return 0.5 * float((left * error).double().sum())
    right = curvature.G[:, None] * error if curvature.G.dim() == 1 else curvature.G @ error
    return 0.5 * float((left * right).double().sum())


def load(path: str | Path) -> dict[str, Tensor]:
    """The state dict of an artifact: every name, dtype and shape as it was packed; tied names share one tensor.

    Raises ArtifactError for anything but a whole, undamaged artifact.
    """
    entries, _ = read(path)
    return dense(entries)


def read(path: str | Path) -> tuple[dict[str, Entry], dict[str, Any]]:
    """(entries, meta) of an artifact file. Raises ArtifactError."""
    from pgolf.errors import ArtifactError

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from None
    try:
        return artifact.decode(data)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None


def dense(entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """Entries -> tensors, by the reconstruction rule."""
    tensors = {name: _dense(entry) for name, entry in entries.items() if entry.alias is None}
    return {name: tensors[entry.alias or name] for name, entry in entries.items()}


def _dense(entry: Entry) -> Tensor:
    dtype = getattr(torch, entry.dtype)
    if entry.planes is None:
        assert entry.raw is not None
        return checkpoint.from_bytes(entry.raw, entry.stored or entry.dtype, entry.shape).to(dtype)
    planes = [torch.from_numpy(plane.reconstruct()) for plane in entry.planes]
    stack = planes[0] if len(planes) == 1 else torch.stack(planes)
    return stack.reshape(entry.shape).to(dtype)


def load_into(path: str | Path, module: nn.Module) -> nn.Module:
    """Load an artifact's weights into `module`, strictly. Raises ArtifactError, or ModelError naming wrong keys."""
    from pgolf.usermodel import load_state

    load_state(module, load(path))
    return module


def inspect(path: str | Path) -> dict[str, Any]:
    """What is in an artifact, as JSON-able facts: tensors (shape, dtype, method, codes' range), total bytes, meta."""
    entries, meta = read(path)
    tensors = []
    for name, entry in entries.items():
        facts: dict[str, Any] = {"name": name, "shape": list(entry.shape), "dtype": entry.dtype, "note": entry.note}
        if entry.alias is not None:
            facts["shared_with"] = entry.alias
        elif entry.planes is None:
            facts["kept_as"] = entry.stored or entry.dtype
        else:
            codes = [p.codes for p in entry.planes]
            facts["planes"] = len(codes)
            facts["trellis"] = max(p.trellis for p in entry.planes)
            facts["code_range"] = [min(int(c.min()) for c in codes), max(int(c.max()) for c in codes)]
        tensors.append(facts)
    return {"bytes": Path(path).stat().st_size, "tensors": tensors, "meta": meta}
