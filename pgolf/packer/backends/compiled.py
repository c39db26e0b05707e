"""Whether the compiled twins of the packer's loops are to be used. Without numba everything works, only slower."""

from __future__ import annotations

from typing import Any

from pgolf.packer.backends.loops import loops


def host() -> Any:
    """The compiled `stream.Device` of this processor, or None: numpy then does the same."""
    if loops() is None:
        return None
    from pgolf.packer.backends.host import Host

    return Host()
