"""A checkpoint, whoever wrote it, as named tensors: nothing of its pickle is run, and nothing in it is lost in silence.

Reading goes four steps: what lies in the file (`torchfile`, `huggingface`), which of it is the model (`nest`), what the
plain class calls it (`names`), which names are one tensor (`ties`). The account says what became of every tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from pgolf.errors import CheckpointError
from pgolf.models import blueprint, huggingface, names, nest, ties, torchfile
from pgolf.models.blueprint import Blueprint
from pgolf.models.gathered import whole
from pgolf.models.inert import Record
from pgolf.models.packed import unpacked
from pgolf.packer.format.artifact import DTYPE_SIZES

MOST_REPEATED, REPEATED_BYTES = 4, 1 << 26  # tensors may together be this much larger than their storages
MOST_VALUES = 1 << 20  # of a nest that is taken whole: one dict named twice in each of forty others makes 2^40
BUFFER, INFINITE = "a buffer", "holds infinities"  # why a tensor keeps its bits
_LIGHTNING = ({"pytorch-lightning_version"}, {"state_dict", "global_step", "loops"}, {"state_dict", "hyper_parameters"})


@dataclass(frozen=True)
class Item:
    """What became of a tensor of the file. path: where it lies in it; name: what it is called now, "" if it was left out;
    why: it was left out, or the name of the tensor that it is one with."""

    path: str
    name: str
    why: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """tensors: name -> CPU tensor, names sorted. aliases: name -> the name in `tensors` that is the same tensor.

    config: what a dict beside the state dict under "config" says of the model, if JSON can hold it. notes: for the report.
    kept: name -> why its bits must stay. account: one item for every tensor in the file.
    buffers: names of the module's buffers, rebuilt: of those that it makes bit for bit (models/buffers.py); None: no module
    was there to say. dropped: buffers that are left out, for the module to make.
    """

    tensors: dict[str, Tensor]
    aliases: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    kept: dict[str, str] = field(default_factory=dict)
    account: tuple[Item, ...] = ()
    buffers: frozenset[str] | None = None
    rebuilt: frozenset[str] | None = None
    dropped: dict[str, Tensor] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Tensor]:
        """All names, aliases included (they share the tensor)."""
        return self.tensors | {name: self.tensors[target] for name, target in self.aliases.items()}


def read(
    path: str | Path, *, everything: bool = False, state: str | None = None, like: nn.Module | None = None
) -> Checkpoint:
    """The checkpoint at `path`: .safetensors, a Hugging Face folder, or anything torch.save wrote.

    everything: all tensors of nested dicts under names joined by dots, as for codes that lie beside their scales,
    instead of the likeliest state dict. state: dotted path of the weights to take, where there are several.
    like: the module that they are for; its names decide. Raises CheckpointError; UsageError for a `state` that is not
    there; ModelError where nothing fits `like`.
    """
    path, plan = Path(path), None if like is None else blueprint.of(like)
    if path.is_dir():
        folder = huggingface.read(path)
        return from_nest(
            folder.tensors, str(path), state, plan, config=folder.config, notes=folder.notes, tied=folder.ties
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is no regular file' if path.exists() else _not_there(path)}")
    torchfile.refuse_foreign(path)
    if torchfile.is_safetensors(path):
        tensors, tied = huggingface.read_safetensors(path)
        return from_nest(tensors, str(path), state, plan, tied=tied)
    loaded = torchfile.torch_load(path)
    if isinstance(loaded, Tensor):
        raise CheckpointError(f"{path}: holds a single tensor, not a state dict; save model.state_dict()")
    if everything and state is None:
        return _everything(loaded, path)
    return from_nest(loaded, str(path), state, plan)


def _not_there(path: Path) -> str:
    """No such file: perhaps the name that a model has on the hub."""
    is_name = len(path.parts) == 2 and not path.suffix[1:].isalpha() and not path.parent.exists()
    return (
        f"no such file or folder; the hub's is to be downloaded first: hf download {path}"
        if is_name
        else "no such file"
    )


def from_nest(
    loaded: Any,
    path: str = "the checkpoint",
    state: str | None = None,
    like: Blueprint | None = None,
    *,
    config: dict[str, Any] | None = None,
    notes: tuple[str, ...] = (),
    tied: Mapping[str, str] | None = None,
) -> Checkpoint:
    """The checkpoint in a nest of dicts, lists and tuples, as `read` finds it in a file. Raises as `read` does."""
    groups = nest.groups_of(loaded, path)
    _refuse_parts(loaded, groups, path)
    choice = nest.choose(groups, path, state, like)
    if choice.where:
        notes = (*notes, f"state dict found under {choice.where!r}")
        config = config or _jsonable(loaded.get("config") if isinstance(loaded, Mapping) else None)
    if choice.others:
        notes = (*notes, f"not tensors, left out: {', '.join(sorted(choice.others)[:8])}")
    fronts = (*names.PARALLEL, *names.LIGHTNING) if _is_lightning(loaded) else names.PARALLEL
    tied = {**_told_by_deepspeed(loaded, choice.tensors), **(tied or {})}
    made = from_mapping(choice.tensors, config, notes, like=like, fronts=fronts, tied=tied, where=choice.where)
    left = [item for group, why in choice.left for item in _left_out(group, why)]
    return replace(made, account=(*made.account, *left))


def from_mapping(
    state: Mapping[str, Any],
    config: dict[str, Any] | None = None,
    notes: tuple[str, ...] = (),
    *,
    like: Blueprint | None = None,
    fronts: Iterable[str] = names.PARALLEL,
    tied: Mapping[str, str] | None = None,
    where: str = "",
) -> Checkpoint:
    """A checkpoint from a flat state dict. Raises CheckpointError for what cannot be packed: no tensors, NaN, odd layouts.

    like: the module that it is for, which then decides on names, buffers and ties. fronts: parts that wrappers put before
    every name. tied: name -> name of the tensor that it is one with, where only the latter is there. where: for the account.
    """
    state, notes = _plain_tensors(state, notes)
    bare, more = _renamed(state, like, tuple(fronts))
    given = {short: state[name] for name, short in sorted(bare.items(), key=lambda pair: pair[1])}
    tensors, aliases = _untied(given, {bare.get(a, a): bare.get(b, b) for a, b in (tied or {}).items()}, like)
    if not tensors:
        raise CheckpointError("the state dict holds no tensors")
    _refuse_repetition(tensors)
    kept, said = _kept(tensors, like)
    account = _account(state, bare, aliases, where)
    buffers = None if like is None else like.buffers
    return Checkpoint(tensors, aliases, config, (*notes, *more, *said), kept, tuple(account), buffers)


def _plain_tensors(state: Mapping[str, Any], notes: tuple[str, ...]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    skipped = sorted(str(name) for name, value in state.items() if not isinstance(value, Tensor))
    if skipped:
        notes = (*notes, f"not tensors, left out: {', '.join(skipped[:8])}")
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}, notes


def _renamed(
    state: Mapping[str, Tensor], like: Blueprint | None, fronts: tuple[str, ...]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """(name -> name in the plain class, notes); the counter of a moving average is left out where its wrapper is gone."""
    bare = names.unwrapped(state, fronts) if like is None else names.fitted(state.keys(), like.full.keys())
    if names.COUNTER in bare and any(a != b for a, b in bare.items()):
        real = set() if like is None else like.full.keys()
        bare = {name: short for name, short in bare.items() if short != names.COUNTER or short in real}
    taken = names.stripped(bare)
    return bare, (f"names without {', '.join(taken[:4])}, which wrappers put there",) if taken else ()


def _untied(
    given: Mapping[str, Tensor], tied: Mapping[str, str], like: Blueprint | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors that are not one another, name -> the name in them that it is one with)."""
    checked = {name: _checked(name, unpacked(whole(tensor.detach()))) for name, tensor in given.items()}
    if like is not None:
        like.check(checked)
        tied = like.ties
    shared = ties.in_storage(checked)
    tensors = {name: tensor.cpu() for name, tensor in checked.items() if name not in shared}
    equal = ties.find(tensors)
    aliases = {name: equal.get(first, first) for name, first in shared.items()} | equal
    left = {name: tensor for name, tensor in tensors.items() if name not in equal}
    wanted = like.completed(checked).keys() if like is not None else tied
    roots = {tied.get(name, name): name for name in reversed(checked)}
    for name in sorted(wanted - checked.keys()):
        if (target := roots.get(tied.get(name, name))) is not None:
            aliases[name] = aliases.get(target, target)
    return left, dict(sorted(aliases.items()))


def _checked(name: str, tensor: Tensor) -> Tensor:
    """The tensor as it can be stored. Raises CheckpointError that says what it is instead, and the mend."""
    kind = type(tensor).__name__
    if "_flat_param" in name.split("."):
        raise CheckpointError(
            f"tensor {name!r} is a flat parameter of FSDP: gather a full state dict (FULL_STATE_DICT)"
        )
    if tensor.is_quantized:
        raise CheckpointError(
            f"tensor {name!r} is quantized ({tensor.dtype}): pack tensor.dequantize(), or its int_repr()"
        )
    if tensor.is_nested:
        raise CheckpointError(f"tensor {name!r} is nested: convert it with tensor.to_padded_tensor(0.0) first")
    if tensor.layout != torch.strided:
        raise CheckpointError(
            f"tensor {name!r} is {tensor.layout}: convert it to a dense tensor first, tensor.to_dense()"
        )
    if tensor.is_meta:
        raise CheckpointError(f"tensor {name!r} has no data (meta device): load the weights before packing")
    if is_traceable_wrapper_subclass(tensor):
        raise CheckpointError(
            f"tensor {name!r} is a {kind}, not plain numbers: pack the model from before it was converted"
        )
    if dtype_name(tensor.dtype) not in DTYPE_SIZES:
        raise CheckpointError(f"tensor {name!r} has dtype {tensor.dtype}, which pgolf cannot store: convert it first")
    return tensor.resolve_conj().resolve_neg()


def _refuse_repetition(tensors: dict[str, Tensor]) -> None:
    """A stride of zero makes 10^12 numbers of one; a few overlapping views are usual, as of fused q, k and v."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors.values()}
    declared, held = sum(t.numel() * t.element_size() for t in tensors.values()), sum(storages.values())
    if declared > MOST_REPEATED * held + REPEATED_BYTES:
        name = max(tensors, key=lambda n: tensors[n].numel() * tensors[n].element_size())
        raise CheckpointError(
            f"the tensors declare {declared:,} bytes, of which {held:,} are there: the rest is repetition, most of it in "
            f"{name!r}; save contiguous tensors"
        )


# ---- NaN, infinities, buffers


def _kept(tensors: Mapping[str, Tensor], like: Blueprint | None) -> tuple[dict[str, str], tuple[str, ...]]:
    """(name -> why its bits must stay, notes). Raises CheckpointError for NaN, and for infinities in a parameter.

    Whether a tensor is a parameter only a module knows; without one, infinities are taken for a mask's.
    """
    sick = [name for name, tensor in tensors.items() if not _all_finite(tensor)]
    nan = [name for name in sick if bool(_flags(tensors[name], torch.isnan).any())]
    if nan:
        where = _listed({name: _flags(tensors[name], torch.isnan) for name in nan})
        raise CheckpointError(f"NaN in {where}: the training run diverged; pack an earlier checkpoint")
    weights = [name for name in sick if like is not None and name in like.full and name not in like.buffers]
    if weights:
        where = _listed({name: _flags(tensors[name], torch.isinf) for name in weights})
        raise CheckpointError(f"infinite weights in {where}: the training run diverged; pack an earlier checkpoint")
    kept = {name: BUFFER for name in (like.buffers if like is not None else ()) if name in tensors}
    kept |= dict.fromkeys(sick, INFINITE)
    said = _listed({name: _flags(tensors[name], torch.isinf) for name in sick})
    notes = (f"infinite values, kept as they are: {said}; as a mask has them, a weight has not",) if sick else ()
    return kept, notes


def _listed(flags: Mapping[str, Tensor]) -> str:
    """ "w (3 of 4,096 values, the first at [0, 17]), ..."."""
    named = [f"{name} ({_counted(flags[name])})" for name in list(flags)[:5]]
    return ", ".join(named) + (f" and {len(flags) - 5} more" if len(flags) > 5 else "")


def _counted(flags: Tensor) -> str:
    first = flags.nonzero()[0].tolist()
    return f"{int(flags.sum()):,} of {flags.numel():,} values, the first at {first}"


def _all_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool(torch.isfinite(_comparable(tensor)).all())


def _flags(tensor: Tensor, of: Any) -> Tensor:
    found: Tensor = of(_comparable(tensor))
    return found


def _comparable(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32) if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


# ---- the account


def _account(
    state: Mapping[str, Tensor], bare: Mapping[str, str], aliases: Mapping[str, str], where: str
) -> Iterable[Item]:
    for name in sorted(state):
        short = bare.get(name, "")
        why = aliases.get(short, "") if short else "counts the averaged models"
        yield _item(f"{where}.{name}" if where else name, short, why, state[name])


def _left_out(group: nest.Group, why: str) -> Iterable[Item]:
    for name, tensor in group.tensors.items():
        yield _item(".".join((*group.path, name)), "", why, tensor)


def _item(path: str, name: str, why: str, tensor: Tensor) -> Item:
    size = 0 if tensor.is_nested else tensor.numel() * tensor.element_size()
    return Item(path, name, why, () if tensor.is_nested else tuple(tensor.shape), dtype_name(tensor.dtype), size)


# ---- what trainers say of their files


def _is_lightning(loaded: Any) -> bool:
    return isinstance(loaded, Mapping) and any(marks <= loaded.keys() for marks in _LIGHTNING)


def _told_by_deepspeed(loaded: Any, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Missing name -> stored name, as a DeepSpeed checkpoint lists the parameters that share memory."""
    shared = loaded.get("shared_params") if isinstance(loaded, Mapping) else None
    pairs = shared.items() if isinstance(shared, Mapping) else ()
    return {a: b for a, b in pairs if isinstance(a, str) and isinstance(b, str) and a not in tensors and b in tensors}


def _refuse_parts(loaded: Any, groups: Iterable[nest.Group], path: str) -> None:
    """Raises CheckpointError for one rank's part of a model."""
    if not isinstance(loaded, Mapping):
        return
    shapes = loaded.get("param_shapes")
    listed = shapes if isinstance(shapes, list) else [shapes]
    named = [pair for part in listed if isinstance(part, Mapping) for pair in part.items()]
    told = {name: tuple(shape) for name, shape in named if isinstance(shape, (tuple, list))}
    there = {name: tuple(t.shape) for group in groups if group.path == ("module",) for name, t in group.tensors.items()}
    if any(there.get(name, shape) != shape for name, shape in told.items()) or "param_slice_mappings" in loaded:
        raise CheckpointError(
            f"{path}: DeepSpeed's ZeRO left the weights on other ranks: run zero_to_fp32.py of the checkpoint's folder and "
            "pack what it writes"
        )
    if isinstance(parts := loaded.get("mp_world_size"), int) and parts > 1:
        raise CheckpointError(
            f"{path}: holds one of {parts} parts of a model that was split over ranks: merge them first"
        )


# ---- every tensor of a file


def _everything(loaded: Any, path: Path) -> Checkpoint:
    """All tensors of a nest; the plain values beside them travel as the configuration, by name."""
    tensors: dict[str, Tensor] = {}
    beside: dict[str, Any] = {}

    def walk(value: Any, name: str, depth: int) -> None:
        if depth > nest.DEEPEST:
            raise CheckpointError(f"{path}: nested more than {nest.DEEPEST} deep: save model.state_dict() alone")
        value = nest.as_mapping(value)
        members: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, Mapping) else ()
        if isinstance(value, (list, tuple)) and any(
            isinstance(v, (Tensor, Mapping, Record, list, tuple)) for v in value
        ):
            members = enumerate(value)
        if (depth and value is loaded) or len(tensors) + len(beside) > MOST_VALUES:
            raise CheckpointError(f"{path}: a dict in it holds itself, or the same ones without end")
        for key, inner in members:
            walk(inner, f"{name}.{key}" if name else str(key), depth + 1)
        if members:
            return
        if name in tensors or name in beside:
            raise CheckpointError(f"{path}: two values would be named {name!r}: rename one")
        (tensors if isinstance(value, Tensor) else beside)[name] = value

    groups = nest.groups_of(loaded, str(path))
    if [group.path for group in groups] == [()] and groups[0].named:
        return from_nest(loaded, str(path))
    walk(loaded, "", 0)
    if not tensors:
        raise CheckpointError(f"{path}: no tensors in it")
    config = _jsonable(beside)
    lost = (f"beside the tensors, left out: {', '.join(sorted(beside)[:8])}",) if beside and config is None else ()
    notes = ("every tensor of the file, names joined by dots", *lost)
    return from_mapping(tensors, config=config or None, notes=notes, fronts=())


def _jsonable(config: Any) -> dict[str, Any] | None:
    try:
        return json.loads(json.dumps(config, sort_keys=True)) if isinstance(config, Mapping) else None
    except (TypeError, ValueError):
        return None


# ---- bytes


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def to_bytes(tensor: Tensor) -> bytes:
    """Little-endian bytes of a tensor of any dtype, in row-major order."""
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def from_bytes(raw: bytes, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `to_bytes`."""
    if not raw:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(getattr(torch, dtype)).reshape(shape)
