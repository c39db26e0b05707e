"""How work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""(what is done, steps done, of how many): for work of several parts. After a comma what is done may say how it stands."""

Advance = Callable[[int, int], None]
"""(steps done, of how many): for work of one part."""

Counted = Callable[[int, int | None], None]
"""The same, None where nobody knows how many there will be."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""
