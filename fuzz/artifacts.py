"""Artifacts of every coder, with every kind of entry, and what they mean."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import Entry
from pgolf.packer.plane import HALF, Plane, Scale, Spread


def _plane(rng: np.random.Generator, rows: int, cols: int, spread: float) -> Plane:
    codes = np.rint(rng.normal(0, spread, (rows, cols))).astype(np.int32)
    return Plane(codes, Scale.nearest(rng.uniform(0.5, 2, rows), 8), Scale.nearest(rng.uniform(0.5, 2, cols), HALF))


def _trellis_plane(rng: np.random.Generator, rows: int, cols: int) -> Plane:
    """Multiples of four are a path: they lead from state 0 to itself."""
    codes = 4 * rng.integers(-5, 6, (rows, cols)).astype(np.int32)
    return Plane(codes, None, None, 8, -3, Spread(rng.integers(8, 12, rows), rng.integers(-2, 3, cols)))


@cache
def artifacts() -> list[bytes]:
    """One of every coder, with every kind of entry."""
    rng = np.random.default_rng(0)
    entries = {
        "bank": Entry("bfloat16", (3, 20, 8), planes=tuple(_plane(rng, 20, 8, 2) for _ in range(3)), note="auto"),
        "embed": Entry("float32", (60, 30), planes=(_plane(rng, 60, 30, 40),)),
        "coded": Entry("float32", (40, 16), planes=(_trellis_plane(rng, 40, 16),)),
        "head": Entry("float32", (60, 30), alias="embed"),
        "gain": Entry("float32", (50,), raw=rng.normal(size=50).astype("<f4").tobytes()),
        "steps": Entry("int64", (), raw=(7).to_bytes(8, "little")),
        "nothing": Entry("float32", (0, 4), raw=b""),
    }
    return [artifact.encode(entries, {"config": {"layers": 2}}, coder).data for coder in artifact.CODERS]


def meaning(data: bytes) -> Any:
    """What an artifact says, in a form that compares."""
    entries, meta = artifact.decode(data)
    weights = {
        name: [plane.reconstruct().tobytes() for plane in entry.planes] if entry.planes else [entry.raw, entry.alias]
        for name, entry in entries.items()
    }
    return weights, meta
