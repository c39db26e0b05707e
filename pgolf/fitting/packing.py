"""The whole story: checkpoint → plan → planes → artifact, and the way back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pgolf.code.weigh import counted_bytes
from pgolf.common import ranks
from pgolf.common.sizes import Size, parse_size
from pgolf.errors import CheckpointError, CurvatureError, UsageError
from pgolf.fitting import budget as budgets
from pgolf.fitting import deadline as deadlines
from pgolf.fitting import plan
from pgolf.fitting.trial import Job, Progress, Trial, one_thread_each
from pgolf.models import blueprint, checkpoint
from pgolf.models.checkpoint import Checkpoint, Item
from pgolf.models.names import stripped, unwrapped
from pgolf.packer.format import artifact
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.settings import HALF, LOG_SCALE, Settings
from pgolf.report import Fate, Report, TensorRow

if TYPE_CHECKING:
    from pgolf.quant.curvature.store import Curvature


LOST = 0.7  # relative error beyond which a tensor is more noise than weights


def pack(
    model: nn.Module | Mapping[str, Tensor] | Checkpoint | str | Path,
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
) -> Report:
    """Pack a model into an artifact at `path` (replaced whole, or left as it was when anything goes wrong).

    model: a module, a state dict, a checkpoint's path, or what `pgolf.models.checkpoint.read` made of one. path: None writes
    nothing; the bytes are in the report.
    budget: bytes or "16MB", for the artifact plus the `code` file or files as a submission counts them; target_rise: instead of
    a budget, the predicted rise of the loss in nats per token; with neither the settings are used as they are.
    state: dotted path of the weights to take, where a checkpoint has several.
    method: a name in `pgolf.quant.METHODS`, or "keep" to change no value. rules: as `--set`; settings: for what no rule
    speaks of. deadline: seconds from this call, after which the best artifact so far is returned; with one, bytes depend
    on the machine's speed. In a process group rank 0 packs and writes; all ranks get its report, or its error.
    Raises BudgetError (does not fit), CheckpointError, CurvatureError, UsageError.
    """
    began = time.perf_counter()
    if budget is not None and target_rise is not None:
        raise UsageError("give a budget or a target rise, not both")

    def alone() -> Report:
        job = Job(source := as_checkpoint(model, state), known_curvatures(source, curvature), progress or silent, coder)
        limit = None if budget is None else parse_size(budget)
        code_bytes = {str(c): counted_bytes(c) for c in listed(code)}
        searched = limit is not None or target_rise is not None
        plans = planned(source, method, rules, settings, coder, search=searched)

        def attempt(job: Job, plans: Mapping[str, plan.TensorPlan], any_fit: bool) -> Trial:
            if limit is not None:
                close = budgets.CLOSE_ENOUGH if any_fit else budgets.CLOSE
                return budgets.fill(job, plans, limit, sum(code_bytes.values()), close)
            return job.run(plans, 1.0) if target_rise is None else budgets.reach(job, plans, target_rise)

        if deadline is None:
            trial, how = attempt(job, plans, False), ""
        else:
            trial, how = deadlines.pack(job, plans, began, deadline, attempt)
        notes = [*source.notes, *_blind_spots(plans, job.curvatures), *_grown_damping(job), *([how] if how else [])]
        report = _report(job, plans, trial, limit, code_bytes, notes, time.perf_counter() - began)
        if path is not None:
            artifact.write(Path(path), trial.encoded.data)
        return report

    return ranks.on_first(alone)


def silent(what: str, done: int, total: int) -> None:
    """The progress that nobody wants to see."""


def planned(
    source: Checkpoint,
    method: str | None,
    rules: str | Sequence[str],
    settings: Settings | None,
    coder: str = "rans",
    *,
    search: bool,
) -> dict[str, plan.TensorPlan]:
    """The plan of every tensor, from what a user may say. Raises UsageError."""
    parsed = [plan.parse_rule(r) for r in listed(rules)]
    made = plan.make(
        source.tensors,
        method=method or "auto",
        rules=parsed,
        search=search,
        base=settings or Settings(scale_per_octave=LOG_SCALE if coder == "rans" else HALF),
    )
    for name, why in source.kept.items():
        asked = any(fnmatchcase(name, rule.pattern) for rule in parsed)
        if not asked or (why == checkpoint.INFINITE and made[name].settings is not None):
            made[name] = plan.TensorPlan(None, why, integers=made[name].integers)
    for name in made:
        if (cast := made[name].cast) and _overflows(source.tensors[name], cast):
            raise UsageError(
                f"--set: {name!r} has values beyond what {cast} holds, they would become infinite: keep it as it is"
            )
    return made


def _overflows(tensor: Tensor, dtype: str) -> bool:
    """Whether a cast makes finite values infinite."""
    finite = torch.isfinite(tensor)
    return bool((~torch.isfinite(tensor.to(getattr(torch, dtype))) & finite).any())


def listed(value: str | Path | Sequence[Any]) -> Sequence[Any]:
    """One name or path given where several may be, as a list."""
    return [value] if isinstance(value, (str, Path)) else value


def as_checkpoint(
    model: nn.Module | Mapping[str, Tensor] | Checkpoint | str | Path, state: str | None = None
) -> Checkpoint:
    """The tensors of whatever `pack` takes. state: which of a file's or nested dict's. Raises CheckpointError."""
    if isinstance(model, Checkpoint):
        return model
    if isinstance(model, (str, Path)):
        return checkpoint.read(model, state=state)
    if not isinstance(model, nn.Module):
        return checkpoint.from_nest(model, state=state)
    if any("FullyShardedDataParallel" in type(m).__name__ for m in model.modules()):
        raise CheckpointError("the module is sharded over ranks: gather its state dict on every rank and pack that")
    held, known = model.state_dict(keep_vars=False), blueprint.of(model)
    tensors = {bare: held[name] for bare, name in known.full.items()}
    taken = stripped({name: bare for bare, name in known.full.items()})
    notes = (f"names without {', '.join(taken)}, which wrappers put there",) if taken else ()
    return checkpoint.from_mapping(tensors, notes=notes, like=known)


def known_curvatures(source: Checkpoint, curvature: Curvature | None) -> dict[str, list[MatrixCurvature | None]]:
    """Per tensor, one for each slice. Raises CurvatureError for shapes of another model, and for what is not finite."""
    if curvature is None:
        return {}
    found = {}
    bare = unwrapped(source.tensors)
    theirs = {short: full for full, short in unwrapped(getattr(curvature, "shapes", ())).items()}
    for name, tensor in source.tensors.items():
        mine = curvature.get(name) or curvature.get(bare[name]) or curvature.get(theirs.get(bare[name], name))
        shape = plan.matrix_shape(tuple(tensor.shape))
        if mine is None or shape is None:
            continue
        if len(mine) != shape[0] or any(m is not None and m.H.shape[-1] != shape[2] for m in mine):
            raise CurvatureError(f"the curvature of {name!r} has another shape: it was collected on another model")
        if not all(_finite(m) for m in mine if m is not None):
            raise CurvatureError(f"the curvature of {name!r} has NaN or infinite values: calibrate again on other text")
        found[name] = mine
    if not found:
        raise CurvatureError("the curvature names none of the checkpoint's tensors: it was collected on another model")
    return found


def _finite(known: MatrixCurvature) -> bool:
    return all(bool(torch.isfinite(side).all()) for side in (known.H, known.G, known.plain) if side is not None)


def _blind_spots(plans: Mapping[str, plan.TensorPlan], known: Mapping[str, Any]) -> list[str]:
    """A note that names the quantized tensors whose curvature is not known, where that of others is."""
    names = [name for name, p in plans.items() if p.settings is not None and name not in known]
    if not known or not names:
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


def _report(
    job: Job,
    plans: Mapping[str, plan.TensorPlan],
    trial: Trial,
    limit: int | None,
    code_bytes: dict[str, int],
    notes: list[str],
    seconds: float,
) -> Report:
    with one_thread_each() as pool:
        rows = list(pool.map(lambda name: _row(job, name, trial), sorted(trial.entries)))
    lost = [row.name for row in rows if row.error is not None and row.error > LOST]
    if lost:
        notes = [
            *notes,
            f"too few bytes for this model: of {len(lost)} tensors hardly anything is left ({lost[0]}, ...)",
        ]
    return Report(
        rows=rows,
        data=trial.encoded.data,
        code_bytes=code_bytes,
        budget=limit,
        step=trial.step if any(p.searched for p in plans.values()) else None,
        coder=job.coder,
        notes=notes,
        seconds=seconds,
        account=account_of(job.source, rows),
    )


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


def _row(job: Job, name: str, trial: Trial) -> TensorRow:
    entry = trial.entries[name]
    error, rise = job.damage(name, entry)
    if entry.alias is not None:
        method, kept = f"shared with {entry.alias}", ""
    elif entry.planes is None:
        method, kept = f"kept as {entry.stored or entry.dtype}", entry.note
    elif not getattr(torch, entry.dtype).is_floating_point:
        method, kept = f"kept as {entry.dtype} codes", entry.note
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
