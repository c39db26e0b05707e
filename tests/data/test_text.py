"""Which files are text, and what is a document in them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from pgolf.data import text
from pgolf.data.shards import write_shard
from pgolf.errors import DataError, UsageError


def test_documents_of_each_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\r\ntwo\n", encoding="utf-8", newline="")
    rows = [{"text": "drei"}, {"text": "", "id": 1}, {"id": 2, "text": "🏡"}]
    (tmp_path / "b.jsonl").write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert list(text.documents([tmp_path / "a.txt", tmp_path / "b.jsonl"])) == ["one\r\ntwo\n", "drei", "🏡"]


def test_long_documents_are_cut_at_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PIECE", 10)
    said = "0123456\n" * 9 + "x" * 45
    (tmp_path / "a.txt").write_text(said)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": said}))
    for name in ("a.txt", "a.jsonl"):
        parts = list(text.documents([tmp_path / name]))
        assert "".join(parts) == said
        assert max(map(len, parts)) <= 20
        assert all(part.endswith("\n") for part in parts[:4])


def test_a_part_is_taken_from_everywhere(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": f"{n:09d}\n"}) for n in range(1000)))
    some = list(text.spread([tmp_path / "a.jsonl"], 1000))
    assert 90 <= len(some) <= 110
    assert (int(some[0]), int(some[-1])) == (0, 990)
    assert len(list(text.spread([tmp_path / "a.jsonl"], 10**6))) == 1000


def test_shards_are_known_by_name_or_first_word(tmp_path: Path) -> None:
    write_shard(tmp_path / "tokens.dat", np.arange(20))
    (tmp_path / "raw.bin").write_bytes(b"anything")
    (tmp_path / "a.md").write_text("text")
    assert [text.is_shard(tmp_path / name) for name in ("tokens.dat", "raw.bin", "a.md")] == [True, True, False]
    assert text.refuse_mixed([tmp_path / "tokens.dat"], "--data")
    assert not text.refuse_mixed([tmp_path / "a.md", tmp_path / "a.md"], "--data")
    with pytest.raises(UsageError, match="given alone"):
        text.refuse_mixed([tmp_path / "a.md", tmp_path / "tokens.dat"], "--data")


def test_parquet_where_pyarrow_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing more")
    if importlib.util.find_spec("pyarrow") is None:
        with pytest.raises(DataError, match="pip install pyarrow"):
            list(text.documents([tmp_path / "a.parquet"]))
        return
    import pyarrow as pa
    from pyarrow import parquet

    with pytest.raises(DataError, match="is no parquet file"):
        list(text.documents([tmp_path / "a.parquet"]))
    parquet.write_table(pa.table({"id": [1, 2], "text": ["eins", "zwei 🏡"]}), tmp_path / "b.parquet")
    assert list(text.documents([tmp_path / "b.parquet"])) == ["eins", "zwei 🏡"]
    parquet.write_table(pa.table({"id": [1, 2]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="no column 'text'; there are id"):
        list(text.documents([tmp_path / "c.parquet"]))
