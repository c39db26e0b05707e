"""Read a checkpoint, whoever wrote it, into named tensors: never running its pickle, never guessing silently.

What will surprise you:
* Only `weights_only` unpickling is used. A checkpoint that needs more is refused, with the names of what it wants.
* The state dict may be nested (`{"model": {...}, "optimizer": ...}`); the likeliest one is taken and named in `notes`.
* Tensors that share storage exactly (tied weights) are read as one tensor and aliases, and come back tied.
"""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pgolf.common.files import replacing
from pgolf.errors import CheckpointError
from pgolf.models import huggingface
from pgolf.packer.format.artifact import DTYPE_SIZES

MOST_REPEATED, REPEATED_BYTES = 4, 1 << 26  # tensors may together be this much larger than their storages
_PREFERRED = ("model", "state_dict", "model_state_dict", "model_state", "module", "net", "weights", "ema", "params")


@dataclass(frozen=True)
class Checkpoint:
    """tensors: name -> CPU tensor, names sorted. aliases: name -> the name in `tensors` that it shares storage with.

    config: what a dict beside the state dict under "config" says of the model, if JSON can hold it. notes: for the report.
    """

    tensors: dict[str, Tensor]
    aliases: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def state_dict(self) -> dict[str, Tensor]:
        """All names, aliases included (they share the tensor)."""
        return self.tensors | {name: self.tensors[target] for name, target in self.aliases.items()}


def read(path: str | Path, *, everything: bool = False) -> Checkpoint:
    """The checkpoint at `path`: .safetensors, a Hugging Face folder, or anything torch.save wrote.

    everything: all tensors of nested dicts under names joined by dots, as for codes that lie beside their scales,
    instead of the likeliest state dict. Raises CheckpointError.
    """
    path = Path(path)
    if path.is_dir():
        return from_mapping(*huggingface.read(path))
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return from_mapping(huggingface.read_safetensors(path))
    loaded = torch_load(path)
    if isinstance(loaded, Tensor):
        raise CheckpointError(f"{path}: holds a single tensor, not a state dict; save model.state_dict()")
    if everything and not _is_state_dict(loaded):
        return _everything(loaded, path)
    state, where = _find_state_dict(loaded, str(path))
    notes = (f"state dict found under {where!r}",) if where else ()
    config = loaded.get("config") if isinstance(loaded, Mapping) and where else None
    return from_mapping(state, config=_jsonable(config), notes=notes)


def torch_load(path: Path) -> Any:
    """What torch.save wrote, its checksums checked, mapped where it is a zip archive. Raises CheckpointError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on old formats is for its authors
            if zipfile.is_zipfile(path):
                _check_archive(path)
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(_Bounded(file, path.stat().st_size), map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from None
    except Exception as error:  # torch.load raises nearly anything on foreign bytes
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint that torch.load reads ({reason})") from None


def torch_save(value: Any, path: Path) -> None:
    """Write by torch.save, whole or not at all. Raises OSError."""
    with replacing(path) as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch closes its archive after a failed write, and that fails again
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _check_archive(path: Path) -> None:
    """Refuse an archive that a reader could understand in two ways, or whose parts do not match their checksums.

    torch.save stores its parts one by one as they are, each with its CRC-32; torch.load does not look at it.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        stored = all(p.compress_type == zipfile.ZIP_STORED and p.file_size == p.compress_size for p in parts)
        plain = stored and not any(p.flag_bits & 1 for p in parts)  # 1: encrypted
        if not plain or len({p.filename for p in parts}) < len(parts):
            raise CheckpointError(
                f"{path}: a zip archive with compressed or repeated parts, not what torch.save writes"
            )
        if sum(p.file_size for p in parts) > path.stat().st_size:
            raise CheckpointError(f"{path}: the parts of this zip archive overlap: it is damaged, or hostile")
        if bad := archive.testzip():
            raise CheckpointError(
                f"{path}: {bad} in it does not match its checksum: it is damaged, copy it again (if it was saved without "
                "checksums, save it again after torch.serialization.set_crc32_options(True))"
            )


class _Bounded:
    """A file that never reads beyond its end: Python's own allocates first whatever length a hostile pickle asks for."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, length: int = -1) -> bytes:
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if length < 0 else min(length, left))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _refused(path: Path, reason: str) -> CheckpointError:
    try:
        wanted = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:
        wanted = []
    if not wanted:
        first = reason.strip().split("\n")[0][:160]
        return CheckpointError(f"{path}: not a checkpoint that torch.load reads with weights_only ({first})")
    return CheckpointError(
        f"{path}: its pickle wants {', '.join(wanted)}, which pgolf will not run; re-save it with "
        "torch.save(model.state_dict(), ...), or allow them yourself with torch.serialization.add_safe_globals"
    )


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and any(isinstance(v, Tensor) for v in value.values())
        and all(isinstance(k, str) for k in value)
    )


def _find_state_dict(loaded: Any, path: str) -> tuple[Mapping[str, Any], str]:
    """The state dict in what torch.load gave, and where it was found ("" = at the top)."""
    found: dict[str, Mapping[str, Any]] = {}

    def walk(value: Any, where: tuple[str, ...]) -> None:
        if _is_state_dict(value):
            found[".".join(where)] = value
        elif isinstance(value, Mapping) and len(where) < 4:
            for key, inner in value.items():
                if "optim" not in str(key).lower():
                    walk(inner, (*where, str(key)))

    walk(loaded, ())
    if not found:
        raise CheckpointError(f"{path}: no state dict (names -> tensors) in it; save model.state_dict()")
    for name in ("", *_PREFERRED):
        for where, state in found.items():
            if where == name or where.split(".")[-1] == name:
                return state, where
    if len(found) > 1:
        raise CheckpointError(f"{path}: several state dicts ({', '.join(found)}); save the one to pack alone")
    return next((state, where) for where, state in found.items())


def _everything(loaded: Any, path: Path) -> Checkpoint:
    """All tensors of a nest; the plain values beside them travel as the configuration, by name."""
    tensors: dict[str, Tensor] = {}
    beside: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        members = value.items() if isinstance(value, Mapping) else ()
        if isinstance(value, (list, tuple)) and any(isinstance(v, (Tensor, Mapping)) for v in value):
            members = enumerate(value)
        for key, inner in members:
            walk(inner, f"{name}.{key}" if name else str(key))
        if members:
            return
        if name in tensors or name in beside:
            raise CheckpointError(f"{path}: two values would be named {name!r}: rename one")
        (tensors if isinstance(value, Tensor) else beside)[name] = value

    walk(loaded, "")
    if not tensors:
        raise CheckpointError(f"{path}: no tensors in it")
    config = _jsonable(beside)
    lost = (f"beside the tensors, left out: {', '.join(sorted(beside)[:8])}",) if beside and config is None else ()
    return from_mapping(tensors, config=config or None, notes=("every tensor of the file, names joined by dots", *lost))


def _jsonable(config: Any) -> dict[str, Any] | None:
    try:
        return json.loads(json.dumps(config, sort_keys=True)) if isinstance(config, Mapping) else None
    except (TypeError, ValueError):
        return None


def from_mapping(
    state: Mapping[str, Any], config: dict[str, Any] | None = None, notes: tuple[str, ...] = ()
) -> Checkpoint:
    """A checkpoint from a state dict. Raises CheckpointError for what cannot be packed: no tensors, NaN, odd layouts."""
    skipped = sorted(name for name, value in state.items() if not isinstance(value, Tensor))
    if skipped:
        notes = (*notes, f"not tensors, left out: {', '.join(skipped[:8])}")
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name in sorted(set(state) - set(skipped)):
        tensor = _checked(name, state[name].detach())
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and tensor.data_ptr() and key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
            tensors[name] = tensor.cpu()
    if not tensors:
        raise CheckpointError("the state dict holds no tensors")
    _refuse_repetition(tensors)
    _refuse_non_finite(tensors)
    return Checkpoint(tensors, aliases, config, notes)


def _checked(name: str, tensor: Tensor) -> Tensor:
    if hasattr(tensor, "full_tensor"):  # a DTensor: FSDP or tensor parallelism
        raise CheckpointError(f"tensor {name!r} is sharded over ranks: gather it first, with tensor.full_tensor()")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        raise CheckpointError(f"tensor {name!r} is {tensor.layout}: convert it to a dense tensor first")
    if tensor.is_meta:
        raise CheckpointError(f"tensor {name!r} has no data (meta device): load the weights before packing")
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


def _refuse_non_finite(tensors: dict[str, Tensor]) -> None:
    bad = [name for name, t in tensors.items() if (t.is_floating_point() or t.is_complex()) and not _all_finite(t)]
    if bad:
        names = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise CheckpointError(
            f"NaN or infinite values in {names}: the training run diverged; pack an earlier checkpoint"
        )


def _all_finite(tensor: Tensor) -> bool:
    plain = tensor.to(torch.float32) if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
    return bool(torch.isfinite(plain).all())


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
