"""`load_module`: an artifact into any module, dense or packed, and word of what stayed packed.

Packing changes parameters, not code: a parameter becomes a `PackedWeight`; a plain nn.Linear or nn.Embedding also shows
it by its class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from pgolf.kernels.device import need
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


LARGE = 1 << 24  # weights of a matrix: 32 MiB in bfloat16, where an H100's cache of 50 MiB begins to be full


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
    path: str | Path,
    module: nn.Module,
    *,
    packed: bool | Literal["auto"] = False,
    device: torch.device | str | None = None,
) -> Summary:
    """Load an artifact into `module` where it is, strictly, after moving it to `device` (None: where it is).

    packed: parameters of 8 bits a code or less stay packed (`PackedWeight`), which small batches and memory like;
    otherwise all are dense, which large batches like. "auto": packed are those alone whose products with a few rows are
    expected to be faster so, on a GPU matrices of LARGE weights and more; no GPU has confirmed that number yet.
    Raises ArtifactError, DeviceError, and ModelError that names keys and shapes that do not fit.
    """
    place = need(device_of(module) if device is None else device)
    decoder = dense.decoder_on(place)
    entries, meta = dense.read(path, decoder)
    reasons = _why_dense(entries) if packed else dict.fromkeys(entries, "as asked")
    if packed == "auto":
        reasons |= {name: why for name, why in _why_no_faster(entries, place).items() if why and not reasons[name]}
    names = usermodel.names_in(module, entries)
    reasons |= {name: why for name, why in _why_not_there(module, entries, names).items() if not reasons[name]}
    chosen = [name for name in entries if not reasons[name]]
    state = dense.tensors_of({name: entry for name, entry in entries.items() if name not in chosen}, decoder)
    shapes = {name: torch.empty(entries[entries[name].alias or name].shape, device="meta") for name in chosen}
    fitted = usermodel.fitted_state(module, state | shapes, dense.dropped_of(meta), later=chosen)
    slots = _emptied(module, {names[name]: name for name in chosen})
    module.to(place)
    usermodel.put(module, fitted, strict=not chosen)
    weights = _packed({name: entries[name] for name in chosen if entries[name].alias is None}, place)
    for slot in slots:
        slot.fill(weights[entries[slot.name].alias or slot.name])
    return Summary(
        {name: weights[entries[name].alias or name].bits for name in chosen},
        {name: why for name, why in reasons.items() if why},
        sum(weight.num_bytes for weight in weights.values()),
    )


@dataclass(frozen=True)
class _Slot:
    """A parameter that was taken out of `owner`, for the tensor `name` of the artifact to take its place."""

    owner: nn.Module
    attribute: str
    dtype: torch.dtype
    name: str

    def fill(self, weight: PackedWeight) -> None:
        self.owner.register_parameter(self.attribute, nn.Parameter(weight.to(self.dtype), requires_grad=False))
        if self.attribute == "weight":
            self.owner.__class__ = _CLASSES.get(type(self.owner), type(self.owner))


def _emptied(module: nn.Module, names: dict[str, str]) -> list[_Slot]:
    """Take parameters out before the module is moved, so that it never lies dense where it is packed.

    names: name in the module -> in the artifact; a parameter of several names goes under each.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    of_parameter = {id(parameters[there]): name for there, name in names.items()}
    slots = []
    for there, parameter in parameters.items():
        if id(parameter) in of_parameter:
            path, _, attribute = there.rpartition(".")
            owner = module.get_submodule(path)
            slots.append(_Slot(owner, attribute, parameter.dtype, of_parameter[id(parameter)]))
            owner._parameters[attribute] = None
    return slots


def _packed(entries: dict[str, Entry], device: torch.device) -> dict[str, PackedWeight]:
    planes = {name: entry.planes or () for name, entry in entries.items()}
    moved = on_device.OnDevice(device).together([on_device.scales_of(some) for some in planes.values()])
    bits = on_device.widths(list(planes.values()))
    return {
        name: PackedWeight.of(
            list(zip((on_device.codes_on(p, device) for p in some), scales[::2], scales[1::2], strict=True)),
            getattr(torch, entries[name].dtype),
            width,
        )
        for (name, some), scales, width in zip(planes.items(), moved, bits, strict=True)
    }


def _why_dense(entries: dict[str, Entry]) -> dict[str, str]:
    """Name -> why it cannot be packed, "" where it can."""
    own = {name: entry for name, entry in entries.items() if entry.alias is None}
    reasons = {name: _kind(entry) for name, entry in own.items()}
    able = [name for name, why in reasons.items() if not why]
    widths = on_device.widths([own[name].planes or () for name in able])
    reasons |= {
        name: "its codes take more than 8 bits" for name, bits in zip(able, widths, strict=True) if bits is None
    }
    return {name: reasons[entry.alias or name] for name, entry in entries.items()}


def _kind(entry: Entry) -> str:
    """Why a tensor is none to be packed, whatever its codes are."""
    if not entry.planes:
        return "not quantized"
    if not getattr(torch, entry.dtype).is_floating_point:
        return "integers"
    if any(0 in plane.codes.shape for plane in entry.planes):
        return "empty"
    if len(entry.shape) != (3 if len(entry.planes) > 1 else 2):
        return f"{len(entry.shape)} dimensions"
    return ""


def _why_no_faster(entries: dict[str, Entry], place: torch.device) -> dict[str, str]:
    """The same of tensors that products would not gain from: on a processor all, on a GPU those that a product in bfloat16
    reads from its cache, or in less time than launches take."""
    if place.type != "cuda":
        return dict.fromkeys(entries, f"nothing to gain on {place.type}")
    sizes = {name: math.prod(entries[entry.alias or name].shape[-2:]) for name, entry in entries.items()}
    return {name: "too small to gain" if size < LARGE else "" for name, size in sizes.items()}


def _why_not_there(module: nn.Module, entries: dict[str, Entry], names: dict[str, str]) -> dict[str, str]:
    """The same of tensors that are no parameters of the module, or parameters that take the values of two."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    found: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, entry in entries.items():
        parameter = parameters.get(names.get(name, ""))
        if parameter is None:
            found[name] = "a buffer"
        elif first.setdefault(id(parameter), entry.alias or name) != (entry.alias or name):
            found[name] = "one parameter of two tensors"
    return found
