"""Names of tensors where there is little room: shortened in the middle, or many of one pattern under one name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile

_PART = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")  # a number between dots
_ANY = re.compile(r"\d+")
HEADS = (0.5, 0.7, 0.3, 0.9, 0.1)  # shares of a name's beginning that are tried


def shortened(name: str, width: int, head: float = 0.5) -> str:
    """A name in at most `width` characters, its middle left out; head: share of them that its beginning keeps."""
    if len(name) <= width:
        return name
    begin = round(head * (width - 1))
    return f"{name[:begin]}…{name[len(name) - (width - 1 - begin) :]}"


def all_shortened(names: Iterable[str], width: int) -> dict[str, str]:
    """Name -> shortened, all at the place where the fewest of them become alike."""
    names = list(dict.fromkeys(names))
    tried = [{name: shortened(name, width, head) for name in names} for head in HEADS]
    return max(tried, key=lambda short: len(set(short.values())))  # the first of the best


def skeleton(name: str, *, anywhere: bool = False) -> str:
    """ "blocks.3.attn.w1" -> "blocks.*.attn.w1"; anywhere: "blocks.*.attn.w*"."""
    return (_ANY if anywhere else _PART).sub("*", name)


def pattern(names: Sequence[str]) -> str:
    """What names of one skeleton have in common: "*" stands for the numbers in which they differ."""
    parts = [re.split(r"(\d+)", name) for name in names]
    return "".join(same[0] if len(set(same)) == 1 else "*" for same in zip(*parts, strict=True))


def common_front(names: Iterable[str]) -> str:
    """The longest beginning of all names that ends with a dot: "model.layers."; "" where they are fewer than two."""
    owners = [name.split(".")[:-1] for name in names]
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*owners, strict=False))  # as deep as the shallowest
    return "".join(f"{parts[0]}." for parts in same) if len(owners) > 1 else ""
