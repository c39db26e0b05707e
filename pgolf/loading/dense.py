"""An artifact's weights at full size, wherever they are wanted: decoded, dequantized once, tied names sharing a tensor."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pgolf.errors import ArtifactError, UsageError
from pgolf.loading.kept import kept
from pgolf.models import huggingface
from pgolf.models.usermodel import load_state
from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import Entry
from pgolf.packer.format.partly import Partly

if TYPE_CHECKING:
    from pgolf.loading.on_device import OnDevice
    from pgolf.packer.coder.stream import Device
    from pgolf.packer.plane import Plane


def load(
    path: str | Path, device: torch.device | str = "cpu", *, names: str | Sequence[str] | None = None
) -> dict[str, Tensor]:
    """The state dict of an artifact, or of the one in a folder (`unpack --format pgolf-hf`): every name, dtype and shape as it
    was packed; tied names share one tensor.

    device: where it is decoded and stays. names: globs, as "blocks.0.*", of the tensors that are wanted; of the others none is
    kept in memory, and most are not decoded (see `pgolf.open`). Raises DeviceError if the device is not there, ArtifactError
    for anything but a whole, undamaged artifact, UsageError for a glob that matches no tensor.
    """
    if names is not None:
        decoder_on(device)
        with named(path):
            return matching(mapped(path), names, device)
    return load_by(path, decoder_on(device))


def load_by(path: str | Path, decoder: OnDevice | None) -> dict[str, Tensor]:
    """As `load`, by a decoder of `decoder_on`: the same bits from any."""
    entries, _ = read(path, decoder)
    return tensors_of(entries, decoder)


def decoder_on(device: torch.device | str) -> OnDevice | None:
    """What decodes and dequantizes on a device; None is numpy on the processor. Raises DeviceError."""
    if str(device) == "cpu":
        return None
    from pgolf.kernels.device import need  # brings triton, where it is installed
    from pgolf.loading.on_device import OnDevice  # the same

    return OnDevice(need(device))


def read(path: str | Path, decoder: Device | None = None) -> tuple[dict[str, Entry], dict[str, Any]]:
    """(entries, meta) of an artifact file; decoder: as `device` of `artifact.decode`. Raises ArtifactError."""
    path = file_of(path)
    with named(path):
        refuse_endless(path)
        return artifact.decode(path.read_bytes(), decoder)


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """What goes wrong with an artifact file, as an ArtifactError that begins with its name."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from None
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None


def file_of(path: str | Path) -> Path:
    """The artifact that a path names, where that is a folder the one in it."""
    inside = Path(path) / huggingface.ARTIFACT
    return inside if Path(path).is_dir() and inside.is_file() else Path(path)


def refuse_endless(path: str | Path) -> None:
    """Raises ArtifactError for a pipe or a device, which may have no end."""
    if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
        raise ArtifactError("is no regular file")


def mapped(path: str | Path) -> Partly:
    """An artifact file of which tensors can be read one by one. Raises ArtifactError, OSError."""
    path = file_of(path)
    refuse_endless(path)
    with path.open("rb") as file:
        size = file.seek(0, 2)
        return Partly(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""))


def matching(file: Partly, patterns: str | Sequence[str], device: torch.device | str) -> dict[str, Tensor]:
    """The tensors whose names match any of the globs, on a device, tied names sharing one.

    Raises UsageError for a glob that matches none.
    """
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in file.names):
            raise UsageError(f"{pattern!r} matches no tensor; names look like {', '.join(file.names[:3])}")
    names = [name for name in file.names if any(fnmatchcase(name, pattern) for pattern in wanted)]
    made = {home: tensor_of(file, home).to(device) for home in dict.fromkeys(map(file.home, names))}
    return {name: made[file.home(name)] for name in names}


def tensor_of(file: Partly, name: str) -> Tensor:
    """One tensor. KeyError where there is none of this name."""
    return _tensor(file.entry(file.home(name)))


def dropped_of(meta: Mapping[str, Any]) -> list[str]:
    """Names of the buffers that an artifact leaves to the model's class. Raises ArtifactError."""
    names = meta.get(artifact.DROPPED, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ArtifactError("the artifact's list of what it leaves out is no list of names: it is damaged")
    return names


def tensors_of(entries: Mapping[str, Entry], decoder: OnDevice | None = None) -> dict[str, Tensor]:
    """Entries -> tensors, where their decoder keeps them."""
    own = {name: entry for name, entry in entries.items() if entry.alias is None}
    found = map(_tensor, own.values()) if decoder is None else decoder.tensors(list(own.values()))
    tensors = dict(zip(own, found, strict=True))
    return {name: tensors[entry.alias or name] for name, entry in entries.items()}


def _tensor(entry: Entry) -> Tensor:
    if entry.planes is None:
        return kept(entry)
    dtype = getattr(torch, entry.dtype)
    return _dense(entry.planes, dtype).reshape(entry.shape).to(dtype)


def _dense(planes: Sequence[Plane], dtype: torch.dtype) -> Tensor:
    """Weights by the reconstruction rule; of an integer dtype the codes, which float32 would round."""
    arrays = [p.reconstruct() if dtype.is_floating_point else np.require(p.codes, requirements="W") for p in planes]
    matrices = [torch.from_numpy(array) for array in arrays]  # torch wants no view of the file
    return matrices[0] if len(matrices) == 1 else torch.stack(matrices)


def load_into(path: str | Path, module: nn.Module) -> nn.Module:
    """Load an artifact's weights into `module`, strictly; buffers that it leaves out are those that the module made.

    Raises ArtifactError, or ModelError naming wrong keys, UsageError where `module` is none.
    """
    if not isinstance(module, nn.Module):
        swapped = isinstance(path, nn.Module)
        mend = "path first, module second" if swapped else "pgolf.load(path) gives tensors without one"
        raise UsageError(f"load_into(path, module) wants a module to load into, not {type(module).__name__}: {mend}")
    entries, meta = read(path)
    load_state(module, tensors_of(entries), dropped_of(meta))
    return module
