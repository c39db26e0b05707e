"""Loading into a module: what was called in the wrong way says how it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pgolf
from pgolf.errors import UsageError


@pytest.mark.parametrize(
    ("path", "module", "says"),
    [
        (nn.Linear(2, 2), "m.pgolf", "path first, module second"),
        ("m.pgolf", {"weight": torch.ones(2)}, "gives tensors without one"),
        ("m.pgolf", None, "not NoneType"),
        ("m.pgolf", nn.Linear, "not type"),
    ],
)
def test_what_is_no_module_is_told_from_one(path: Any, module: Any, says: str, tmp_path: Path) -> None:
    pgolf.pack(nn.Linear(2, 2), tmp_path / "m.pgolf", method="keep")
    path = tmp_path / path if isinstance(path, str) else path
    with pytest.raises(UsageError, match=says):
        pgolf.load_into(path, module)
