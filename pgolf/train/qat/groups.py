"""Parameters that are rounded in one go: what an update of QAT costs is the number of its small operations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pgolf.quant.settings import Settings
from pgolf.quant.slices import matrix_shape


@dataclass(frozen=True)
class Group:
    """names: of parameters of one shape, dtype, device and settings. shape: (matrices, R, C) of each.

    `auto` has a lattice of its own for each parameter, with large factors: such a group has one member.
    """

    names: tuple[str, ...]
    settings: Settings
    shape: tuple[int, int, int]

    def together(self, params: Mapping[str, Tensor]) -> Tensor:
        """A copy of the members [k, ...] in their own dtype."""
        return torch.stack([params[name].detach() for name in self.names])

    def matrices(self, together: Tensor) -> Tensor:
        """float32 [k·n, R, C] of `together`."""
        return together.float().view(-1, *self.shape[1:])


def groups_of(params: Mapping[str, Tensor], settings: Mapping[str, Settings]) -> list[Group]:
    """All parameters that have settings, in the order of their first members."""
    found: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, own in settings.items():
        param = params[name]
        alone = name if own.method == "auto" else ""
        found[tuple(param.shape), param.dtype, param.device, own, alone].append(name)
    return [Group(tuple(names), settings[names[0]], shape_of(params[names[0]])) for names in found.values()]


def shape_of(param: Tensor) -> tuple[int, int, int]:
    """(matrices, R, C) of a matrix, bank or convolution."""
    shape = matrix_shape(tuple(param.shape))
    assert shape is not None
    return shape
