"""Whether the compiled twins of the packer's loops are to be used. Without numba everything works, only slower."""

from __future__ import annotations

import os
from typing import Any


def loops() -> Any:
    """pgolf.packer.rans_numba, or None where numba is missing or switched off (PGOLF_COMPILED=0)."""
    if os.environ.get("PGOLF_COMPILED", "1") == "0":
        return None
    try:
        from pgolf.packer import rans_numba
    except ImportError:
        return None
    return rans_numba


def host() -> Any:
    """The compiled `stream.Device` of this processor, or None: numpy then does the same."""
    if loops() is None:
        return None
    from pgolf.packer.host import Host

    return Host()
