"""Results on disk: JSON and text, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pgolf.packer.container import replacing


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with replacing(Path(path)) as file:
        file.write(text.encode())
