"""Artifact file -> weights: what the decoder stub of a submission does (see stub.py)."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from pgolf.packer.format import artifact, container


def load(path: str, torch: Any = None) -> dict[str, Any]:
    """name -> tensor of an artifact file, given the torch module; tied names share one tensor.

    Without torch: name -> (flat array, the dtype that its bytes are, shape, the dtype that it stands for), because numpy
    lacks some dtypes. Raises ArtifactError.
    """
    parsed = container.parse(np.fromfile(path, np.uint8).tobytes())
    below: dict[str, Any] = {}  # numbers that belong to later names, by the first
    found, home = {}, {}
    for (name, dtype, shape, kind, other, _), planes, raw in artifact.contents(*parsed):
        flat, stored = np.frombuffer(bytearray(raw), np.uint8), other or dtype
        if planes:
            flat = np.concatenate([p.codes if "int" in dtype else p.reconstruct() for p in planes]).ravel()
        if kind == 0:
            flat = below.pop(other, flat)  # nothing, where it is a name for the same tensor
        if kind >= 0:
            flat, rest = np.split(flat, [prod(shape)])
            if rest.size:
                below[other or name] = rest
            stored = flat.dtype.name
        home[name] = name if kind or flat.size else other
        found[name] = flat, stored, shape, dtype
        if torch and home[name] == name:
            found[name] = torch.from_numpy(flat).view(getattr(torch, stored)).reshape(shape).to(getattr(torch, dtype))
    return {name: found[other] for name, other in home.items()}
