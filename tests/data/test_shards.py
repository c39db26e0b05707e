"""Token shards: what is written is read, what is damaged is refused, and batches depend on seed and step alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data.shards import (
    CHUNK,
    HEADER_BYTES,
    WindowSampler,
    check_vocabulary,
    document_starts,
    read_shard,
    write_shard,
)
from pgolf.errors import DataError


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard.bin"
    write_shard(path, np.arange(10, dtype=np.uint16))
    return path


def test_bytes_of_a_shard(tmp_path: Path):
    write_shard(tmp_path / "s.bin", np.array([1, 65535], np.int64))
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 2
    assert (tmp_path / "s.bin").read_bytes() == header.tobytes() + b"\x01\x00\xff\xff"


@given(tokens=st.lists(st.integers(0, 65535), max_size=50))
@settings(max_examples=30, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, tokens: list[int]):
    path = tmp_path_factory.mktemp("shard") / "s.bin"
    write_shard(path, np.array(tokens, np.uint16))
    read = read_shard(path)
    assert read.dtype == np.uint16
    assert read.tolist() == tokens
    assert [p.name for p in path.parent.iterdir()] == ["s.bin"]


def test_a_vocabulary_over_65536_has_wide_shards(tmp_path: Path):
    write_shard(tmp_path / "s.bin", np.array([1, 65536, 262143]), wide=True)
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 2, 3
    wanted = header.tobytes() + b"\x01\0\0\0" + b"\0\0\x01\0" + b"\xff\xff\x03\0"
    assert (tmp_path / "s.bin").read_bytes() == wanted
    read = read_shard(tmp_path / "s.bin")
    assert read.dtype == np.uint32
    assert read.tolist() == [1, 65536, 262143]
    batch = WindowSampler([read], seq_len=2, batch_size=1, seed=0).batch(0)
    assert batch.tolist() == [[1, 65536, 262143]]


def test_a_shard_is_mapped_not_read(shard: Path):
    assert isinstance(read_shard(shard), np.memmap)


@pytest.mark.parametrize("bad", [np.array([65536]), np.array([-1])])
def test_tokens_that_do_not_fit_are_not_written(tmp_path: Path, bad: np.ndarray):
    with pytest.raises(DataError, match=r"0\.\.65535"):
        write_shard(tmp_path / "s.bin", bad)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b"", "not a token shard"),
        (lambda b: b"\x00" + b[1:], "not a token shard"),
        (lambda b: b[:500], "shorter than its 1024-byte header"),
        (lambda b: b[:4] + b"\x03" + b[5:], "version 3"),
        (lambda b: b[:4] + b"\x02" + b[5:], "is truncated: its header says 10 tokens, the file holds 5"),
        (lambda b: b[:-2], "is truncated: its header says 10 tokens, the file holds 9"),
        (lambda b: b[:-1], "is truncated: its header says 10 tokens, the file holds 9.5"),
        (lambda b: b + b"\x00\x00", "bytes after its last token: its header says 10 tokens, the file holds 11"),
        (lambda b: b[:8] + b"\xff\xff\xff\xff" + b[12:], "its header says -1 tokens"),
    ],
)
def test_damaged_shards_are_refused_in_one_line(shard: Path, damage, message: str):
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(DataError, match=message) as error:
        read_shard(shard)
    assert "\n" not in str(error.value)
    assert str(shard) in str(error.value)


def test_missing_shard(tmp_path: Path):
    with pytest.raises(DataError, match="No such file"):
        read_shard(tmp_path / "none.bin")


def test_vocabulary_names_the_first_offender_across_chunks():
    tokens = np.zeros(CHUNK + 100, np.uint16)
    check_vocabulary(tokens, 1)
    tokens[CHUNK + 7 :] = 1024
    with pytest.raises(DataError, match=f"token 1024 at position {CHUNK + 7} .* vocabulary of 1024"):
        check_vocabulary(tokens, 1024)


def test_header_length():
    assert HEADER_BYTES == 1024


def test_an_epoch_visits_every_window_once():
    shards = [np.arange(0, 1000, dtype=np.uint16), np.arange(2000, 2500, dtype=np.uint16)]
    sampler = WindowSampler(shards, seq_len=10, batch_size=7, seed=3)
    steps = (98 + 48) // 7
    starts = np.concatenate([sampler.batch(step)[:, 0].numpy() for step in range(steps)])
    assert len(np.unique(starts)) == len(starts) == 140
    assert len(np.unique(starts[starts < 2000] % 10)) == 1


def test_windows_are_consecutive_tokens_of_one_shard():
    shards = [np.arange(100, dtype=np.uint16), np.arange(500, 512, dtype=np.uint16), np.arange(5, dtype=np.uint16)]
    batch = WindowSampler(shards, seq_len=10, batch_size=30, seed=0).batch(0)
    assert batch.shape == (30, 11)
    assert (batch.diff(dim=1) == 1).all()
    assert (batch[:, 0] >= 500).any()


def test_batches_depend_on_seed_and_step_alone():
    shards = [np.arange(1000, dtype=np.uint16)]
    a, b = (WindowSampler(shards, seq_len=16, batch_size=4, seed=1) for _ in range(2))
    later = a.batch(100)
    assert (a.batch(3) != later).any()
    assert (b.batch(100) == later).all()
    assert (WindowSampler(shards, seq_len=16, batch_size=4, seed=2).batch(100) != later).any()


def test_a_shard_of_exactly_one_window_is_enough():
    batch = WindowSampler([np.arange(5, dtype=np.uint16)], seq_len=4, batch_size=2, seed=0).batch(0)
    assert batch.tolist() == [[0, 1, 2, 3, 4]] * 2
    with pytest.raises(DataError, match="no shard holds a window of 5 \\+ 1 tokens: the longest has 5"):
        WindowSampler([np.arange(5, dtype=np.uint16)], seq_len=5, batch_size=2, seed=0)


def test_windows_move_back_to_the_start_of_a_near_document():
    """Documents begin at 0, 30, 60...; a window of 40 tokens moves by up to 10."""
    tokens = np.arange(100, 1100, dtype=np.uint16)
    tokens[::30] = 1
    plain, aware = (WindowSampler([tokens], 40, 23, seed=0, bos=bos) for bos in (None, 1))
    before, after = plain.batch(0), aware.batch(0)
    distance = (before[:, 1] - after[:, 1]).tolist()
    assert (after[:, 0] == 1).sum() > (before[:, 0] == 1).sum()
    assert max(distance) <= 10
    for moved, row, old in zip(distance, after, before, strict=True):
        assert moved == 0 or row[0] == 1
        assert moved != 0 or row[0] == 1 or (old[1] - 101) % 30 > 10


def test_document_starts(monkeypatch: pytest.MonkeyPatch):
    tokens = np.array([5, 1, 7, 8, 1, 9, 9])
    assert document_starts(tokens, 1).tolist() == [1, 4]
    monkeypatch.setattr("pgolf.data.shards.CHUNK", 3)
    assert document_starts(tokens, 1).tolist() == [1, 4]
    assert len(document_starts(np.array([2, 3]), 1)) == 0
    with pytest.raises(DataError, match=r"no document start \(token 1\).*--bos"):
        document_starts(np.array([2, 3]), 1, required=True)
