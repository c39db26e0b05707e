"""What `pack` and `estimate` are given, checked and made into a job."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pgolf.common import scratch
from pgolf.common.progress import Progress, silent
from pgolf.errors import CheckpointError, CurvatureError, UsageError
from pgolf.fitting import dropping, obeyed, plan, stacks
from pgolf.fitting.plan import Rule, TensorPlan
from pgolf.fitting.trial import Job
from pgolf.loading import hf_folder
from pgolf.models import blueprint, checkpoint, huggingface, transformers_model
from pgolf.models.checkpoint import Checkpoint
from pgolf.models.names import stripped, unwrapped
from pgolf.quant.curvature import unreached
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.methods.auto import informative
from pgolf.quant.settings import HALF, LOG_SCALE, Settings
from pgolf.quant.slices import matrix_shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgolf.quant.curvature.store import Curvature

    Model = nn.Module | Mapping[str, Tensor] | Checkpoint | str | Path


def job_of(
    model: Model,
    curvature: Curvature | None = None,
    *,
    method: str | None = None,
    rules: str | Sequence[str] = (),
    settings: Settings | None = None,
    search: bool,
    coder: str = "rans",
    progress: Progress = silent,
    state: str | None = None,
    drop: str | Sequence[str] = (),
) -> Job:
    """The job of a model, from what a user may say; arguments as in `pack`. search: a goal will move the knob.

    Raises CheckpointError, CurvatureError, UsageError.
    """
    source = dropping.without(as_checkpoint(model, state), plan.listed(drop))
    curvatures = known_curvatures(source, curvature)
    parsed = [plan.parse_rule(r, (method or "auto").partition(":")[0]) for r in plan.listed(rules)]
    plans = plan.make(
        source.tensors,
        method=method or "auto",
        rules=parsed,
        search=search,
        base=settings or Settings(scale_per_octave=LOG_SCALE if coder == "rans" else HALF),
        priced={name for name, slices in curvatures.items() if all(c is not None and informative(c) for c in slices)},
    )
    plans = with_kept_bits(plans, source, parsed)
    notes = (*calibration_notes(source, curvature), *obeyed.left(parsed, plans, source.tensors))
    together = stacks.found(source.tensors, plans, curvatures, set(source.aliases.values()))
    return Job(source, plans, curvatures, coder, progress, stacks=together, notes=notes)


def with_kept_bits(plans: Mapping[str, TensorPlan], source: Checkpoint, rules: Sequence[Rule]) -> dict[str, TensorPlan]:
    """The plans, with what must keep its bits (buffers, infinities) kept unless a rule speaks of nothing else.

    Raises UsageError for a cast that some value would not survive.
    """
    made = dict(plans)
    told = [{name for name in plans if fnmatchcase(name, rule.pattern)} for rule in rules]
    of_kept = {name for names in told if names <= source.kept.keys() for name in names}
    for name, why in source.kept.items():
        asked = name in of_kept
        if not asked or (why == checkpoint.INFINITE and made[name].kept != plan.KEPT_BY_RULE):
            made[name] = TensorPlan(None, why, integers=made[name].integers)
    for name, each in made.items():
        if each.cast and _overflows(source.tensors[name], each.cast):
            raise UsageError(
                f"--set: {name!r} has values beyond what {each.cast} holds, they would become infinite: keep it as it is"
            )
    return made


def _overflows(tensor: Tensor, dtype: str) -> bool:
    """Whether a cast makes finite values infinite."""
    finite = torch.isfinite(tensor)
    return bool((~torch.isfinite(tensor.to(getattr(torch, dtype))) & finite).any())


def as_checkpoint(model: Model, state: str | None = None) -> Checkpoint:
    """The tensors of whatever `pack` takes. state: which of a file's or nested dict's. Raises CheckpointError."""
    if isinstance(model, Checkpoint):
        return model
    if isinstance(model, (str, Path)):
        if huggingface.artifact_in(Path(model)):
            return hf_folder.read(Path(model))
        named = state is None and Path(model).is_dir() and transformers_model.is_known(huggingface.config(Path(model)))
        return transformers_model.read(Path(model)) if named else checkpoint.read(model, state=state)
    if not isinstance(model, nn.Module):
        blueprint.refuse_pipeline(model)
        return checkpoint.from_nest(model, state=state)
    if any("FullyShardedDataParallel" in type(m).__name__ for m in model.modules()):
        raise CheckpointError(
            "the module is sharded over ranks by FSDP1: pack get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True)), of which every rank is given all; fully_shard's need no such thing"
        )
    if split := next((name for name, p in model.named_parameters() if hasattr(p, "ds_id")), None):
        raise CheckpointError(
            f"parameter {split!r} is split over ranks by DeepSpeed's ZeRO-3: run zero_to_fp32.py of a checkpoint's folder and "
            "pack what it writes"
        )
    held, known = model.state_dict(keep_vars=False), blueprint.of(model)
    tensors = {bare: held[name] for bare, name in known.full.items()}
    taken = stripped({name: bare for bare, name in known.full.items()})
    notes = (f"names without {', '.join(taken)}, which wrappers put there",) if taken else ()
    return checkpoint.from_mapping(tensors, transformers_model.config_of(model), notes, like=known)


def known_curvatures(source: Checkpoint, curvature: Curvature | None) -> dict[str, list[MatrixCurvature | None]]:
    """Per tensor, one for each slice; what no token came to has the mean of its kind.

    Raises CurvatureError for shapes of another model, and for what is not finite.
    """
    if curvature is None:
        return {}
    return unreached.priced(_collected(source, curvature), *_unreached(source, curvature))


def calibration_notes(source: Checkpoint, curvature: Curvature | None) -> tuple[str, ...]:
    """What the curvature's text was, and which matrices worth quantizing none of it came to."""
    if curvature is None:
        return ()
    names = unreached.names_of(curvature, *_unreached(source, curvature))
    names = [name for name in names if not plan.reason_to_keep(source.tensors[name.partition("[")[0]])]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    told = f"no calibration token came to {', '.join(names[:8])}{more}: priced as the mean of their kind, if any"
    return (*curvature.notes, *([told] if names else []))


def _unreached(source: Checkpoint, curvature: Curvature) -> tuple[dict[str, tuple[int, int, int]], list[str]]:
    """The shapes of all matrices, and the names of those that no token came to."""
    bare = unwrapped(source.tensors)
    shapes = {name: matrix_shape(tuple(tensor.shape)) for name, tensor in source.tensors.items()}
    unseen = curvature.unreached | set(unwrapped(curvature.unreached).values())
    names = [name for name in source.tensors if {name, bare[name]} & unseen]
    return {name: shape for name, shape in shapes.items() if shape is not None}, names


def _collected(source: Checkpoint, curvature: Curvature) -> dict[str, list[MatrixCurvature | None]]:
    found = {}
    bare, large = unwrapped(source.tensors), sum(t.numel() for t in source.tensors.values()) >= scratch.MANY
    theirs = {short: full for full, short in unwrapped(getattr(curvature, "shapes", ())).items()}
    for name, tensor in source.tensors.items():
        known_as = (name, bare[name], theirs.get(bare[name], name))
        mine = next((m for m in map(curvature.matrices, known_as) if m is not None), None)
        shape = matrix_shape(tuple(tensor.shape))
        if mine is None or shape is None:
            continue
        if len(mine) != shape[0] or any(m is not None and m.H.shape[-1] != shape[2] for m in mine):
            raise CurvatureError(f"the curvature of {name!r} has another shape: it was collected on another model")
        if not all(_finite(m) for m in mine if m is not None):
            raise CurvatureError(f"the curvature of {name!r} has NaN or infinite values: calibrate again on other text")
        found[name] = [m and _kept(m) for m in mine] if large else mine
        if large:
            scratch.worked_on(sum(m.num_bytes for m in mine if m))
    if not found:
        raise CurvatureError("the curvature names none of the checkpoint's tensors: it was collected on another model")
    return found


def _kept(known: MatrixCurvature) -> MatrixCurvature:
    """The same where it may stay while everything is rounded."""

    def of(side: Tensor | None) -> Tensor | None:
        on_cpu = side is not None and side.device.type == "cpu"
        return torch.from_numpy(scratch.kept(side.numpy())) if side is not None and on_cpu else side

    return MatrixCurvature(of(known.H), of(known.G), of(known.plain))  # type: ignore[arg-type]  # of gives None for None alone


def _finite(known: MatrixCurvature) -> bool:
    return all(bool(torch.isfinite(side).all()) for side in (known.H, known.G, known.plain) if side is not None)
