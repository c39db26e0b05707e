"""Arrays that lie in files without a name, and what is done where there is no room for one."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgolf.common import scratch


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scratch, "LARGE", 100)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_what_is_kept_has_the_same_numbers(tmp_path: Path) -> None:
    for array in (np.arange(60.0).reshape(6, 10), np.arange(60.0).reshape(6, 10).T[::2], np.zeros((0, 3))):
        found = scratch.kept(array)
        assert found.dtype == array.dtype
        assert (found == array).all()
        assert found.flags.writeable
        assert (found is array) == (array.nbytes < 100)
    assert not list(tmp_path.iterdir())


def test_zeros_are_added_to(tmp_path: Path) -> None:
    for shape in ((3, 4), (30, 4)):
        found = scratch.zeros(shape, np.float32)
        assert (found == 0).all()
        found += 2
        assert found.sum() == 2 * found.size
        assert found.shape == shape
    assert not list(tmp_path.iterdir())


def test_what_is_given_back_keeps_its_numbers() -> None:
    kept, sums = scratch.kept(np.arange(6000.0)), scratch.zeros((6000,), np.float32)
    for round_ in (1, 2):
        kept += 1
        sums += kept.astype(np.float32)
        scratch.give_back()
        assert (kept == np.arange(6000.0) + round_).all()
        assert sums[10] == (11, 23)[round_ - 1]
    del kept, sums
    scratch.give_back()


@pytest.mark.parametrize("missing", ["room", "folder"])
def test_without_room_arrays_stay_in_memory(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if missing == "room":
        monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
        monkeypatch.setattr(scratch.mmap, "mmap", full)
    else:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    array = np.arange(60.0)
    assert scratch.kept(array) is array
    assert (scratch.zeros((60,), np.float32) == 0).all()


@pytest.mark.parametrize(("rows", "width"), [(0, 5), (1, 1), (1000, 7), (7, 1000), (5, 1 << 24)])
def test_pieces_are_all_rows_and_never_one_alone_but_the_last(rows: int, width: int) -> None:
    found = scratch.pieces(rows, width)
    assert [i for piece in found for i in range(rows)[piece]] == list(range(rows))
    assert all(piece.stop - piece.start > 1 for piece in found[:-1])
