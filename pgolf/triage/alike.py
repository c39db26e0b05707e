"""Near-duplicates among scripts: Jaccard of the shingles of their tokens, found by minhash, said exactly.

Hashes are our own arithmetic on 64 bits, the same in every process: Python's differ from one to the next.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
WIDTH = 8  # tokens of a shingle
SKETCH = 128  # minima of a sketch: the standard error of a Jaccard of 0.8 is 0.035
SLACK = 0.15  # by which a sketch may miss; four standard errors
ALIKE = 0.8
_ODD = np.uint64(0x9E3779B97F4A7C15)


def shingles(tokens: Sequence[str]) -> Hashes:
    """uint64, ascending, each once: a hash of every run of WIDTH tokens; of all of them where there are fewer."""
    if not tokens:
        return np.zeros(0, np.uint64)
    known = {token: zlib.crc32(token.encode("utf-8", "surrogatepass")) for token in set(tokens)}
    values = _mixed(np.array([known[token] for token in tokens], np.uint64))
    width = min(WIDTH, len(values))
    total = np.zeros(len(values) - width + 1, np.uint64)
    for place in range(width):
        total = total * _ODD + values[place : place + len(total)]
    return np.unique(_mixed(total))


def _mixed(values: Hashes) -> Hashes:
    """A bijection of 64 bits in which every bit hangs on every other (the finisher of splitmix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def sketch(hashes: Hashes) -> Hashes:
    """uint64 [SKETCH]: minima under that many orders of the shingles; equal with the probability of the Jaccard."""
    keys = _mixed(np.arange(1, SKETCH + 1, dtype=np.uint64) * _ODD)
    return np.array([_mixed(hashes ^ key).min() for key in keys], np.uint64)


def jaccard(one: Hashes, other: Hashes) -> float:
    """Shared shingles over all, 0 to 1."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / max(len(one) + len(other) - both, 1)


def pairs(scripts: Mapping[str, Hashes], least: float = ALIKE) -> dict[tuple[str, str], float]:
    """(name, later name) -> Jaccard of all pairs with `least` at least."""
    names = [name for name in scripts if len(scripts[name])]
    if len(names) < 2:
        return {}
    sketches = np.stack([sketch(scripts[name]) for name in names])
    found = {}
    for at, name in enumerate(names):
        near = (sketches[at + 1 :] == sketches[at]).mean(1) >= least - SLACK
        for other in np.flatnonzero(near):
            later = names[at + 1 + int(other)]
            share = jaccard(scripts[name], scripts[later])
            if share >= least:
                found[name, later] = share
    return found


def clusters(names: Sequence[str], near: Mapping[tuple[str, str], float]) -> list[list[str]]:
    """Groups of two and more, each of a first script and those near to it: a chain of small changes is no group.

    Every name joins the first group whose first script is near.
    """
    groups: list[list[str]] = []
    for name in names:
        home = next((group for group in groups if (group[0], name) in near), None)
        if home is None:
            groups.append([name])
        else:
            home.append(name)
    return [group for group in groups if len(group) > 1]
