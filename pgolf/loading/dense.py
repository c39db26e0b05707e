"""An artifact's weights at full size, wherever they are wanted: decoded, dequantized once, tied names sharing a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pgolf.errors import ArtifactError
from pgolf.models import checkpoint
from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import Entry

if TYPE_CHECKING:
    from pgolf.packer.coder.stream import Device


def load(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The state dict of an artifact: every name, dtype and shape as it was packed; tied names share one tensor.

    device: where it is decoded and stays. Raises DeviceError if it is not there, ArtifactError for anything but a
    whole, undamaged artifact.
    """
    if str(device) != "cpu":
        from pgolf.loading import on_device

        return on_device.load(path, device)
    entries, _ = read(path)
    return tensors_of(entries)


def read(path: str | Path, device: Device | None = None) -> tuple[dict[str, Entry], dict[str, Any]]:
    """(entries, meta) of an artifact file; device: as in `artifact.decode`. Raises ArtifactError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from None
    try:
        return artifact.decode(data, device)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None


def tensors_of(entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """Entries -> tensors, by the reconstruction rule."""
    tensors = {name: _dense(entry) for name, entry in entries.items() if entry.alias is None}
    return {name: tensors[entry.alias or name] for name, entry in entries.items()}


def _dense(entry: Entry) -> Tensor:
    if entry.planes is None:
        return kept(entry)
    exact = not getattr(torch, entry.dtype).is_floating_point  # codes of integers are the values; float32 would round
    planes = [torch.from_numpy(plane.codes if exact else plane.reconstruct()) for plane in entry.planes]
    stack = planes[0] if len(planes) == 1 else torch.stack(planes)
    return stack.reshape(entry.shape).to(getattr(torch, entry.dtype))


def kept(entry: Entry) -> Tensor:
    """The tensor of an entry that was not quantized."""
    assert entry.raw is not None
    return checkpoint.from_bytes(entry.raw, entry.stored or entry.dtype, entry.shape).to(getattr(torch, entry.dtype))


def load_into(path: str | Path, module: nn.Module) -> nn.Module:
    """Load an artifact's weights into `module`, strictly. Raises ArtifactError, or ModelError naming wrong keys."""
    from pgolf.models.usermodel import load_state

    load_state(module, load(path))
    return module
