"""Every reader of files and strings from strangers, with honest inputs to start from.

A reader may do two things with any bytes: return what they mean, or raise a PgolfError. A new format is one function
and one line in TARGETS.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fuzz import mutate
from pgolf.packer import artifact
from pgolf.packer.artifact import Entry
from pgolf.packer.plane import HALF, Plane, Scale, Spread

Mutator = Callable[[bytes, np.random.Generator], bytes]


@dataclass(frozen=True)
class Target:
    """read: bytes -> what they mean. seeds: honest inputs. mutators: used in turn.

    sealed: checksums cover everything that the mutators touch, so what is still accepted must equal the seed's meaning.
    """

    read: Callable[[bytes], Any]
    seeds: Callable[[], list[bytes]]
    mutators: tuple[Mutator, ...] = (mutate.damaged,)
    sealed: bool = False


def _file(suffix: str) -> Path:
    """One file a process and suffix, overwritten by every input: readers that map files want a name."""
    return _folder() / f"input{suffix}"


@cache
def _folder() -> Path:
    return Path(_keep_alive().name)


@cache
def _keep_alive() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="pgolf-fuzz-")


def _on_file(suffix: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def run(data: bytes) -> Any:
        path = _file(suffix)
        path.write_bytes(data)
        return read(path)

    return run


def _plane(rng: np.random.Generator, rows: int, cols: int, spread: float) -> Plane:
    codes = np.rint(rng.normal(0, spread, (rows, cols))).astype(np.int32)
    return Plane(codes, Scale.nearest(rng.uniform(0.5, 2, rows), 8), Scale.nearest(rng.uniform(0.5, 2, cols), HALF))


def _trellis_plane(rng: np.random.Generator, rows: int, cols: int) -> Plane:
    """Multiples of four are a path: they lead from state 0 to itself."""
    codes = 4 * rng.integers(-5, 6, (rows, cols)).astype(np.int32)
    return Plane(codes, None, None, 8, -3, Spread(rng.integers(8, 12, rows), rng.integers(-2, 3, cols)))


@cache
def _artifacts() -> list[bytes]:
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


def _meaning(data: bytes) -> Any:
    """What an artifact says, in a form that compares."""
    entries, meta = artifact.decode(data)
    weights = {
        name: [plane.reconstruct().tobytes() for plane in entry.planes] if entry.planes else [entry.raw, entry.alias]
        for name, entry in entries.items()
    }
    return weights, meta


def _shards() -> list[bytes]:
    from pgolf.train.data import write_shard

    path = _file(".bin")
    write_shard(path, np.arange(300) % 64)
    return [path.read_bytes()]


def _read_shard(path: Path) -> Any:
    from pgolf.train.data import read_shard

    return int(read_shard(path).sum())


def _state() -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 6, generator=generator)
    return {"model": {"a": weight, "b": weight, "c": weight.bfloat16()}, "config": {"layers": 2}, "step": 3}


def _pickles() -> list[bytes]:
    import torch

    out = []
    for modern in (True, False):
        file = io.BytesIO()
        torch.save(_state(), file, _use_new_zipfile_serialization=modern)
        out.append(file.getvalue())
    return out


def _safetensors() -> list[bytes]:
    from safetensors.torch import save

    state = _state()["model"]
    return [save({"a": state["a"], "c": state["c"]}, {"format": "pt"})]


def _read_checkpoint(path: Path) -> Any:
    from pgolf import checkpoint

    return sorted(checkpoint.read(path).tensors)


def _curvatures() -> list[bytes]:
    import torch

    from pgolf.quant.calibrate import calibrate

    torch_generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(16, 8), torch.nn.Linear(8, 16))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, generator=torch_generator)
    path = _file(".curvature")
    calibrate(model, [torch.arange(16).reshape(2, 8)], progress=False).save(path)
    return [path.read_bytes()]


def _read_curvature(path: Path) -> Any:
    from pgolf.quant.curvature import Curvature

    found = Curvature.load(path)
    return [found.get(name) is None for name in found.shapes]


def _rules() -> list[bytes]:
    return [
        b"tok_emb.*=int8,k=20",
        b"*=keep",
        b"a.*.b=gptq,int5,damp=0.1,block=64",
        b"x=fp16",
        b"[ab]?=percentile=.999",
    ]


def _read_rule(data: bytes) -> Any:
    from pgolf import plan

    return plan.parse_rule(data.decode("utf-8", "replace"))


def _sizes() -> list[bytes]:
    return [b"16MB", b"15.3 MiB", b"16_000_000", b"500kB"]


def _read_size(data: bytes) -> Any:
    from pgolf.sizes import parse_size

    return parse_size(data.decode("utf-8", "replace"))


TARGETS: dict[str, Target] = {
    "artifact": Target(
        _meaning, _artifacts, (mutate.damaged, lambda d, rng: mutate.repaired(mutate.damaged(d, rng))), sealed=True
    ),
    "forged-artifact": Target(_meaning, _artifacts, (mutate.forged,)),
    "shard": Target(_on_file(".bin", _read_shard), _shards),
    "checkpoint": Target(_on_file(".pt", _read_checkpoint), _pickles),
    "safetensors": Target(_on_file(".safetensors", _read_checkpoint), _safetensors),
    "curvature": Target(_on_file(".curvature", _read_curvature), _curvatures),
    "rule": Target(_read_rule, _rules),
    "size": Target(_read_size, _sizes),
}
