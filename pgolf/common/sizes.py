"""Byte sizes as people write them: decimal kB and MB, binary KiB and MiB. The contest's 16 MB is 16,000,000 bytes."""

from __future__ import annotations

import re

from pgolf.errors import UsageError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*")


def parse_size(text: str | int) -> int:
    """ "16MB" -> 16000000, "15.3 MiB" -> 16043212 (rounded down), "16_000_000" -> itself. Raises UsageError."""
    if isinstance(text, int):
        text = str(text)
    match = _SIZE.fullmatch(text)
    unit = match and _UNITS.get(match[2].lower())
    if not match or not unit:
        raise UsageError(f"size {text!r} is not a number of bytes: write 16MB, 500kB, 15.2MiB or plain digits")
    whole, _, fraction = match[1].replace("_", "").replace(",", "").partition(".")
    size = int(whole + fraction) * unit // int(10 ** len(fraction))
    if size <= 0:
        raise UsageError(f"size {text!r} is not above zero")
    return size


def show_size(num_bytes: float) -> str:
    """12,345,678 B, for people."""
    return f"{round(num_bytes):,} B"
