"""Artifact file -> weights: what the decoder stub of a submission does (see stub.py)."""

from __future__ import annotations

from typing import Any

from pgolf.packer import artifact


def load(path: str, torch: Any = None) -> dict[str, Any]:
    """name -> tensor of an artifact file, given the torch module; tied names share one tensor.

    Without torch: name -> (flat array, the dtype that its bytes are, shape, the dtype that it stands for), because numpy
    lacks some dtypes. Raises ArtifactError.
    """
    with open(path, "rb") as file:
        entries, _ = artifact.decode(file.read())
    found: dict[str, Any] = {}
    for name, entry in entries.items():
        if entry.alias is None:
            flat, stored = entry.flat()
            found[name] = flat, stored, entry.shape, entry.dtype
            if torch:
                tensor = torch.from_numpy(flat).view(getattr(torch, stored)).reshape(entry.shape)
                found[name] = tensor.to(getattr(torch, entry.dtype))
    return {name: found[entry.alias or name] for name, entry in entries.items()}
