"""Which compiled loops and which host `format/artifact.py` works with. Without numba everything works, only slower."""

from __future__ import annotations

import os

from pgolf.packer.coder.loops import Loops
from pgolf.packer.coder.stream import Device


def loops() -> Loops | None:
    """The compiled loops, or None where numba is missing or switched off (PGOLF_COMPILED=0): numpy then does the same."""
    if os.environ.get("PGOLF_COMPILED", "1") == "0":
        return None
    try:
        from pgolf.packer.backends import rans_numba  # needs numba
    except ImportError:
        return None
    return rans_numba


def host() -> Device | None:
    """This processor as a `Device` with compiled loops of its own, or None under the same conditions."""
    if loops() is None:
        return None
    from pgolf.packer.backends.host import Host  # needs numba

    return Host()
