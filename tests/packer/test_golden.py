"""Artifacts of every format version, kept for ever: each must decode to the tensors that it held when it was written.

`python -m tests.packer.test_golden` adds the artifacts of the current version; it never changes one that exists.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pgolf.loading.dense import load
from pgolf.models.checkpoint import to_bytes
from pgolf.packer.coder import families
from pgolf.packer.format import artifact, container
from pgolf.packer.format.artifact import Entry
from pgolf.packer.plane import HALF, Plane, Scale
from tests.packer.test_stream import PARTS, walked

Array = NDArray[Any]

FOLDER = Path(__file__).parents[1] / "golden"
DIGESTS = FOLDER / "digests.json"


def digest(path: Path) -> str:
    """Of names, dtypes, shapes and bits of all tensors."""
    state = load(path)
    facts = [(name, str(t.dtype), list(t.shape), to_bytes(t).hex()) for name, t in sorted(state.items())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@pytest.mark.parametrize("name", json.loads(DIGESTS.read_text()))
def test_old_artifacts_decode_for_ever(name):
    assert digest(FOLDER / name) == json.loads(DIGESTS.read_text())[name]


def test_every_version_is_among_them():
    names = set(json.loads(DIGESTS.read_text()))
    assert {f"1-{coder}.pgolf" for coder in artifact.CODERS} <= names
    assert {int(name.partition("-")[0]) for name in names} == set(container.VERSIONS)
    for name in names:
        assert container.version((FOLDER / name).read_bytes()) == int(name.partition("-")[0])


def everything() -> bytes:
    """An artifact that uses all of the rANS coder: both kinds of codes, tables and families, escapes, wide codes, lanes."""
    rng = np.random.default_rng(2)

    def coded(matrix: Array, **rest: Any) -> Entry:
        return Entry("float32", matrix.shape, planes=(Plane(matrix.astype(np.int32), **rest),))

    def path(rows: int, seed: int) -> Entry:
        codes, layout = walked(rows, 6, 64, seed, frozen_below=5)
        return coded(
            codes, col_scale=Scale.nearest(rng.uniform(0.5, 2, 6), 8), trellis=64, trellis_from=5, spread=layout.spread
        )

    far = np.rint(rng.normal(0, 2, (60, 40)))
    far[[3, 50], [3, 7]] = 100_000, -(1 << 31)
    gauss, comb = np.rint(rng.normal(0, 4, (2, 200, 60)))
    return artifact.encode(
        {
            "comb": coded(2 * (comb // 2), row_scale=Scale.nearest(rng.uniform(0.5, 2, 200), 1)),
            "far": coded(far),
            "flat": coded(rng.integers(-2, 3, (300, 40))),
            "gauss": coded(gauss, row_scale=Scale.nearest(rng.uniform(0.5, 2, 200), HALF)),
            "half": Entry("float32", (70,), raw=rng.normal(size=70).astype("<f2").tobytes(), stored="float16"),
            "long path": path(1100, 0),
            "mask": Entry("bool", (5,), raw=b"\1\0\1\1\0"),
            "one": coded(np.full((9, 5), 3)),
            "path": path(90, 1),
            "wide": coded(np.rint(rng.normal(0, 3000, (50, 30)))),
        }
    ).data


def stacked() -> bytes:
    """Five tensors in the rows of one trellis plane, and one beside them."""
    codes, layout = walked(70, 6, 8, 3, frozen_below=5)
    scale = Scale.nearest(np.random.default_rng(4).uniform(0.5, 2, 70), 4)
    whole = Plane(codes, scale, None, trellis=8, trellis_from=5, spread=layout.spread)
    parts = [whole.part(slice(first, first + 14)) for first in range(0, 70, 14)]
    heads = {
        f"heads.{i}.q": Entry("bfloat16", (14, 6), planes=(p,), part_of="heads.0.q" if i else None)
        for i, p in enumerate(parts)
    }
    return artifact.encode(heads | {"heads.1.gain": Entry("float32", (1,), raw=bytes(4))}).data


def test_everything_is_in_it():
    head, stored, content = container.parse((FOLDER / "1-everything.pgolf").read_bytes())
    sections = container.unpack(stored, content)
    assert {f"codes.{part}" for part in PARTS} <= sections.keys()
    assert len(sections["codes.lanes"]) >= 3 * 8
    assert {record[4] for record in head["planes"]} >= {0, 1, 2}
    count = families.BITMAP_BYTES * (1 + max(record[4] for record in head["planes"]))
    tags, rest = set(), sections["codes.tables"][count:]
    while rest:
        tags.add(rest[0])
        rest = rest[4 + (2 * rest[2] if rest[0] == 2 else 0) :]
    assert tags == {0, 1, 2}


def add() -> None:
    from fuzz.targets import TARGETS

    digests = json.loads(DIGESTS.read_text())
    current = dict(zip(artifact.CODERS, TARGETS["artifact"].seeds(), strict=True))
    current |= {"everything": everything(), "stacked": stacked()}
    for name, data in current.items():
        path = FOLDER / f"{container.version(data)}-{name}.pgolf"
        if not path.exists():
            path.write_bytes(data)
            digests[path.name] = digest(path)
    DIGESTS.write_text(json.dumps(digests, indent=1) + "\n")


if __name__ == "__main__":
    add()
