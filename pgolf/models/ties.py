"""Which names are one tensor: the only place that decides it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

FEWEST = 256  # weights of equal matrices that are one: smaller ones cost next to nothing twice
_PEEK = 64  # values compared before a whole tensor is hashed


def find(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> the first name that holds the same tensor: of one storage, or a matrix of equal dtype, shape and content.

    Vectors and constants may be equal by how they start: they are only one where they share their storage. An artifact
    gives every name its value either way; what it calls one tensor also comes back as one, and would be trained as one.
    """
    shared = in_storage(tensors)
    rest = {name: tensor for name, tensor in tensors.items() if name not in shared}
    equal = _of_equal_content(rest)
    return {name: equal.get(first, first) for name, first in shared.items()} | equal


def in_storage(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> the first name whose tensor lies at the same place with the same shape."""
    seen: dict[Any, str] = {}
    found = {}
    for name, tensor in tensors.items():
        place = _place(tensor)
        if place is not None and seen.setdefault(place, name) != name:
            found[name] = seen[place]
    return found


def of_module(module: nn.Module) -> dict[str, str]:
    """The same of a module's state dict: which names are one parameter there."""
    return in_storage(module.state_dict())


def differing(given: Mapping[str, Tensor], ties: Mapping[str, str]) -> tuple[str, str] | None:
    """Two names of one parameter that are given different values, the one that would win last; None if there are none."""
    last: dict[str, str] = {}
    order = {name: i for i, name in enumerate([*ties.values(), *ties])}
    for name in sorted(given.keys() & order.keys(), key=lambda n: order[n]):
        first = ties.get(name, name)
        if first in last and not equal(given[last[first]], given[name]):
            return last[first], name
        last[first] = name
    return None


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one, or hold the same dtype, shape and values."""
    if a is b or (_place(a) is not None and _place(a) == _place(b)):
        return True
    alike = a.dtype == b.dtype and not (a.is_nested or b.is_nested) and a.shape == b.shape
    return alike and _is_plain(a) and _is_plain(b) and torch.equal(_comparable(a), _comparable(b))


def _comparable(tensor: Tensor) -> Tensor:
    """float8 has no comparison on some versions; its bytes do."""
    return tensor.contiguous().view(torch.uint8) if tensor.element_size() == 1 and tensor.dim() else tensor


def _place(tensor: Tensor) -> Any:
    """Where a tensor lies, None where that means nothing (empty, without data, a subclass with parts of its own)."""
    if not _is_plain(tensor) or not tensor.numel() or not tensor.data_ptr():
        return None
    return str(tensor.device), tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is numbers at one place, no subclass with parts of its own."""
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout == torch.strided
    return plain and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)


def _of_equal_content(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    found: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for names in _groups(tensors, tensors, lambda t: (t.dtype, t.shape) if _is_large_matrix(t) else None):
        for alike in _groups(tensors, names, _peek):
            for name in alike:
                key = _digest(tensors[name])
                if seen.setdefault(key, name) != name and not _is_constant(tensors[name]):
                    found[name] = seen[key]
    return found


def _groups(tensors: Mapping[str, Tensor], names: Iterable[str], key: Any) -> list[list[str]]:
    """Names of equal key, where there are two or more; a key of None stands alone."""
    groups: dict[Any, list[str]] = {}
    for name in names:
        if (found := key(tensors[name])) is not None:
            groups.setdefault(found, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _is_large_matrix(tensor: Tensor) -> bool:
    return tensor.dim() > 1 and tensor.numel() >= FEWEST


def _peek(tensor: Tensor) -> bytes:
    """Some bytes of the first and the last slice: unlike tensors need no hash."""
    ends = [part.reshape(-1)[:_PEEK].contiguous() for part in (tensor.detach()[0], tensor.detach()[-1])]
    return b"".join(end.view(torch.uint8).numpy().tobytes() for end in ends)


def _digest(tensor: Tensor) -> tuple[Any, ...]:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return tensor.dtype, tensor.shape, hashlib.blake2b(flat.data).digest()


def _is_constant(tensor: Tensor) -> bool:
    flat = tensor.detach().contiguous().reshape(tensor.numel(), 1).view(torch.uint8).reshape(tensor.numel(), -1)
    return bool((flat == flat[:1]).all())
