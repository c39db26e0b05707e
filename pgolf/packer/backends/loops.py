"""Whether the compiled twins of the coder's loops are to be used. Without numba everything works, only slower."""

from __future__ import annotations

import os
from typing import Any


def loops() -> Any:
    """pgolf.packer.backends.rans_numba, or None where numba is missing or switched off (PGOLF_COMPILED=0)."""
    if os.environ.get("PGOLF_COMPILED", "1") == "0":
        return None
    try:
        from pgolf.packer.backends import rans_numba
    except ImportError:
        return None
    return rans_numba
