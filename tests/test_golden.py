"""Artifacts of every format version, kept for ever: each must decode to the tensors that it held when it was written.

`python -m tests.test_golden` adds the artifacts of the current version; it never changes one that exists.
"""

import hashlib
import json
from pathlib import Path

import pytest

from pgolf.checkpoint import to_bytes
from pgolf.packer import artifact, container
from pgolf.pipeline import load

FOLDER = Path(__file__).parent / "golden"
DIGESTS = FOLDER / "digests.json"


def digest(path: Path) -> str:
    """Of names, dtypes, shapes and bits of all tensors."""
    state = load(path)
    facts = [(name, str(t.dtype), list(t.shape), to_bytes(t).hex()) for name, t in sorted(state.items())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@pytest.mark.parametrize("name", json.loads(DIGESTS.read_text()))
def test_old_artifacts_decode_for_ever(name):
    assert digest(FOLDER / name) == json.loads(DIGESTS.read_text())[name]


def test_the_current_version_is_among_them():
    names = set(json.loads(DIGESTS.read_text()))
    assert {f"{container.VERSION}-{coder}.pgolf" for coder in artifact.CODERS} <= names


def add() -> None:
    from fuzz.targets import TARGETS

    digests = json.loads(DIGESTS.read_text())
    for coder, data in zip(artifact.CODERS, TARGETS["artifact"].seeds(), strict=True):
        path = FOLDER / f"{container.VERSION}-{coder}.pgolf"
        if not path.exists():
            path.write_bytes(data)
            digests[path.name] = digest(path)
    DIGESTS.write_text(json.dumps(digests, indent=1) + "\n")


if __name__ == "__main__":
    add()
