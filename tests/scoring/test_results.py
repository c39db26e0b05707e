"""What is saved is read back, and nothing else is taken for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pgolf.errors import DataError
from pgolf.scoring.bpb import result_of
from pgolf.scoring.documents import per_document
from pgolf.scoring.results import Result, is_result, read


def some() -> Result:
    nats, counts, starts = np.linspace(1, 2, 30, dtype=np.float32), np.arange(31), np.array([0, 10, 25])
    return Result("a.pt", "windows of 8", result_of(nats, counts, 0.5), per_document(nats, counts, starts), "a note")


def test_round_trip(tmp_path: Path):
    made = some()
    (tmp_path / "r.json").write_text(json.dumps(made.to_json()))
    found = read(tmp_path / "r.json")
    assert found.to_json() == made.to_json()
    assert found.documents.bpb == pytest.approx(found.score.bpb)
    assert is_result(tmp_path / "r.json")
    assert not is_result(Path("model.pgolf"))


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.pop("bpb"),
        lambda facts: facts.update(per_document=[1, 2]),
        lambda facts: facts["per_document"]["nats"].pop(),
        lambda facts: facts["per_document"]["tokens"].append(1),
        lambda facts: facts["per_document"]["bytes"].reverse() or facts["per_document"]["bytes"].append(3),
        lambda facts: facts["per_document"].update(nats=["x", "y", "z"]),
        lambda facts: facts["per_document"]["nats"].__setitem__(0, 14.0),  # the score is that of other documents
        lambda facts: facts["per_document"]["nats"].__setitem__(0, float("nan")),
        lambda facts: facts["per_document"]["tokens"].__setitem__(0, 1 << 70),
        lambda facts: facts.update(bpb=facts["bpb"] * 1.01),
        lambda facts: facts.update(seconds=0),
        lambda facts: facts.update(note=3),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, change):
    facts = some().to_json()
    change(facts)
    (tmp_path / "r.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"r.json is not a result that `pgolf eval -o` saved"):
        read(tmp_path / "r.json")


def test_not_json(tmp_path: Path):
    for text in (b"\xff\xfe{", b"[" * 100_000, b"7" * 10_000):
        (tmp_path / "r.json").write_bytes(text)
        with pytest.raises(DataError, match="not a result"):
            read(tmp_path / "r.json")
    with pytest.raises(DataError, match="No such file"):
        read(tmp_path / "none.json")
