"""`load_module`: an artifact into any module, dense or packed, and word of what stayed packed.

Packing changes parameters, not code: a parameter becomes a `PackedWeight`; a plain nn.Linear or nn.Embedding also shows
it by its class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from pgolf.kernels.device import need
from pgolf.kernels.packed import width_of
from pgolf.kernels.weight import PackedWeight
from pgolf.loading import dense, on_device
from pgolf.models import usermodel
from pgolf.models.logits import device_of

if TYPE_CHECKING:
    from pgolf.packer.format.artifact import Entry


@dataclass(frozen=True)
class Summary:
    """packed: name -> bits a code; dense: name -> why it is not packed; num_bytes: memory of the packed ones."""

    packed: dict[str, int]
    dense: dict[str, str]
    num_bytes: int

    def __str__(self) -> str:
        lines = [f"{len(self.packed)} tensors packed in {self.num_bytes:,} bytes, {len(self.dense)} dense"]
        lines += [f"  {name}: {bits} bits" for name, bits in self.packed.items()]
        lines += [f"  {name}: dense, {why}" for name, why in self.dense.items()]
        return "\n".join(lines)


class PackedLinear(nn.Linear):
    """An nn.Linear whose weight is a PackedWeight."""

    weight: PackedWeight

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.weight.bits}"


class PackedEmbedding(nn.Embedding):
    """An nn.Embedding whose weight is a PackedWeight."""

    weight: PackedWeight

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.weight.bits}"


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: PackedLinear, nn.Embedding: PackedEmbedding}


def load_module(
    path: str | Path, module: nn.Module, *, packed: bool = False, device: torch.device | str | None = None
) -> Summary:
    """Load an artifact into `module` where it is, strictly, after moving it to `device` (None: where it is).

    packed: parameters of 8 bits a code or less stay packed (`PackedWeight`), which small batches and memory like;
    otherwise all are dense, which large batches like.
    Raises ArtifactError, DeviceError, and ModelError that names keys and shapes that do not fit.
    """
    place = need(device_of(module) if device is None else device)
    module.to(place)
    decoder = dense.decoder_on(place)
    entries, meta = dense.read(path, decoder)
    reasons = {name: _why_dense(entry) if packed else "as asked" for name, entry in _resolved(entries).items()}
    state = dense.tensors_of(entries, decoder)
    names = usermodel.names_in(module, state)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    reasons |= {name: "a buffer" for name in entries if not reasons[name] and names.get(name) not in parameters}
    usermodel.load_state(module, state, dense.dropped_of(meta))
    weights = {
        name: _packed(entry, state[name].dtype, place)
        for name, entry in entries.items()
        if _is_own(name, entry, reasons)
    }
    for name, entry in entries.items():
        if not reasons[name]:
            _replace(module, names[name], weights[entry.alias or name])
    return Summary(
        {name: weights[entry.alias or name].bits for name, entry in entries.items() if not reasons[name]},
        {name: why for name, why in reasons.items() if why},
        sum(weight.num_bytes for weight in weights.values()),
    )


def _resolved(entries: dict[str, Entry]) -> dict[str, Entry]:
    return {name: entries[entry.alias or name] for name, entry in entries.items()}


def _is_own(name: str, entry: Entry, reasons: dict[str, str]) -> bool:
    return entry.alias is None and not reasons[name]


def _why_dense(entry: Entry) -> str:
    """Why a tensor cannot be packed, "" if it can."""
    if not entry.planes:
        return "not quantized"
    if not getattr(torch, entry.dtype).is_floating_point:
        return "integers"
    codes = [plane.codes for plane in entry.planes]
    if any(0 in c.shape for c in codes):
        return "empty"
    if len(entry.shape) != (3 if len(codes) > 1 else 2):
        return f"{len(entry.shape)} dimensions"
    if width_of(min(int(c.min()) for c in codes), max(int(c.max()) for c in codes)) is None:
        return "its codes take more than 8 bits"
    return ""


def _packed(entry: Entry, dtype: torch.dtype, device: torch.device) -> PackedWeight:
    assert entry.planes is not None
    return PackedWeight.of([on_device.parts(plane, device) for plane in entry.planes], dtype)


def _replace(module: nn.Module, name: str, weight: PackedWeight) -> None:
    path, _, attribute = name.rpartition(".")
    owner = module.get_submodule(path)
    like = getattr(owner, attribute)
    kept = nn.Parameter(weight.to(like.dtype), requires_grad=False)
    del owner._parameters[attribute]
    owner.register_parameter(attribute, kept)
    if attribute == "weight":
        owner.__class__ = _CLASSES.get(type(owner), type(owner))
