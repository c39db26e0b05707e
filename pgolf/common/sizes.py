"""Byte sizes as people write them: decimal kB and MB, binary KiB and MiB. The contest's 16 MB is 16,000,000 bytes."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from numbers import Integral, Real

from pgolf.errors import UsageError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"\s*([0-9][0-9_,]{0,99}(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*")
MOST = 10**30  # bytes; a float's arithmetic ends beyond
Size = str | int | float | Real  # NumPy's numbers are Real


def parse_size(size: Size) -> int:
    """ "16MB" -> 16000000, "15.3 MiB" -> 16043212 (rounded down), "16_000_000", 16e6, numpy.int64(...) -> itself.

    Raises UsageError.
    """
    num_bytes = _number(size)
    if num_bytes is None:
        raise UsageError(f"size {size!r} is not a number of bytes: write 16MB, 500kB, 15.2MiB or plain digits")
    if num_bytes <= 0:
        raise UsageError(f"size {size!r} is not above zero")
    if num_bytes >= MOST:
        raise UsageError(f"size {str(size)[:40]!r} is more than any file has")
    return num_bytes


def _number(size: object) -> int | None:
    """Whole bytes, exactly; None for what is no size."""
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        unit = _UNITS.get(match[2].lower()) if match else None
        return int(Fraction(match[1].replace("_", "").replace(",", "")) * unit) if match and unit else None
    if isinstance(size, bool) or not isinstance(size, Real):
        return None
    if isinstance(size, Integral):
        return int(size)
    return math.floor(float(size)) if math.isfinite(float(size)) else None


def show_size(num_bytes: float) -> str:
    """12,345,678 B, for people."""
    return f"{round(num_bytes):,} B"
