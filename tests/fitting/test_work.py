"""A pack that is broken off goes on from what it had rounded, to the same bytes; short packs write nothing but the artifact."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pgolf
import pgolf.fitting.inputs
from pgolf.errors import BudgetError
from pgolf.fitting import resume, work
from pgolf.fitting.trial import Job
from pgolf.fitting.work import Work
from pgolf.quant import METHODS
from tests.helpers import generator

AGAIN = "gone on with after a break"
KILLED = """
import os, signal, sys
from pgolf.fitting import resume, work
from tests.fitting.test_work import packed
resume.WORTH, left, write = 0.0, int(sys.argv[2]), work.Work._write
def counted(self, *given):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, *given)
work.Work._write = counted
packed(sys.argv[1])
"""


def state() -> dict[str, Tensor]:
    g = generator(3)
    tensors = {f"w{i}": torch.randn(80, 64, generator=g) for i in range(4)}
    tied = torch.randn(128, 64, generator=g).bfloat16()
    bank = torch.randn(3, 64, 64, generator=g)
    return tensors | {"bank": bank, "head": tied, "tok": tied, "norm": torch.rand(40, generator=g)}


def packed(path: str | Path | None, **more: Any) -> pgolf.Report:
    return pgolf.pack(state(), path, **({"budget": 19_000} | more))


@pytest.fixture
def whole() -> bytes:
    return packed(None).data


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "WORTH", 0.0)


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every matrix that was rounded, not read."""
    rows, staged = [], METHODS["auto"].staged
    assert staged is not None

    def counted(weight: Tensor, *rest: Any) -> Any:
        rows.append(len(weight))
        return finish(weight, *rest)

    finish = staged.finish
    object.__setattr__(staged, "finish", counted)
    yield rows  # type: ignore[misc]
    object.__setattr__(staged, "finish", finish)


def break_off(monkeypatch: pytest.MonkeyPatch, path: Path, after: int, error: BaseException) -> None:
    """A pack that ends at the write of so many kept files."""
    write, left = Work._write, after

    def counted(self: Work, *given: Any) -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            raise error
        return write(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Work, "_write", counted)
        with pytest.raises(type(error)):
            packed(path)


@pytest.mark.parametrize("after", [0, 1, 5, 9, 12])
@pytest.mark.usefixtures("kept")
def test_it_goes_on(
    after: int, whole: bytes, rounded: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(tmp_path / "whole.pgolf")
    alone = len(rounded)
    rounded.clear()
    break_off(monkeypatch, tmp_path / "m.pgolf", after, KeyboardInterrupt())
    assert (tmp_path / "m.pgolf.work").is_dir()
    rounded.clear()
    made = packed(tmp_path / "m.pgolf")
    assert made.data == whole == (tmp_path / "m.pgolf").read_bytes()
    assert (AGAIN in made.notes) == (after > 0)
    assert len(rounded) == alone - after if after < 9 else len(rounded) < alone - 7
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.pgolf", "whole.pgolf"]


def test_killed_at_any_point(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "WORTH", 0.0)
    path, points = tmp_path / "m.pgolf", random.Random(0)
    for _ in range(2):
        words = [sys.executable, "-c", KILLED, str(path), str(points.randrange(1, 8))]
        assert subprocess.run(words, check=False, cwd=Path(__file__).parents[2]).returncode == -signal.SIGKILL
        assert not path.exists()
    made = packed(path)
    assert (made.data, AGAIN in made.notes) == (whole, True)
    assert list(tmp_path.iterdir()) == [path]


def test_a_short_pack_writes_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Work, "at", lambda *_: pytest.fail("kept"))
    packed(tmp_path / "m.pgolf")
    monkeypatch.setattr(resume, "WORTH", 0.0)
    packed(None)
    packed(tmp_path / "m.pgolf", deadline=100.0)


@pytest.mark.usefixtures("kept")
def test_another_pack_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(monkeypatch, tmp_path / "m.pgolf", 5, KeyboardInterrupt())
    made = packed(tmp_path / "m.pgolf", rules=["w0=keep"], budget=36_000)
    assert AGAIN not in made.notes
    assert made.data == packed(None, rules=["w0=keep"], budget=36_000).data


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-30], lambda data: b"", lambda data: data[:200] + b"!" + data[201:]]
)
@pytest.mark.usefixtures("kept")
def test_damaged_files_are_made_anew(
    damage: Any, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(monkeypatch, tmp_path / "m.pgolf", 11, KeyboardInterrupt())
    for file in (tmp_path / "m.pgolf.work").glob("*.npz"):
        file.write_bytes(damage(file.read_bytes()))
    assert packed(tmp_path / "m.pgolf").data == whole
    assert [file.name for file in tmp_path.iterdir()] == ["m.pgolf"]


@pytest.mark.usefixtures("kept")
def test_a_full_disk_keeps_nothing_and_loses_nothing(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(work.np, "savez", full)
        assert packed(tmp_path / "m.pgolf").data == whole
    assert [file.name for file in tmp_path.iterdir()] == ["m.pgolf"]
    with monkeypatch.context() as patch:  # what was kept before the artifact found no room
        patch.setattr("pgolf.fitting.packing.artifact.write", full)
        with pytest.raises(OSError, match="No space left"):
            packed(tmp_path / "n.pgolf")
    made = packed(tmp_path / "n.pgolf")
    assert (made.data, AGAIN in made.notes) == (whole, True)


@pytest.mark.usefixtures("kept")
def test_a_folder_of_somebody_elses_is_left_alone(whole: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "m.pgolf.work"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    assert packed(tmp_path / "m.pgolf").data == whole
    assert [file.name for file in folder.iterdir()] == ["thesis.tex"]


@pytest.mark.usefixtures("kept")
def test_a_larger_budget_goes_on_from_one_that_does_not_fit(whole: bytes, tmp_path: Path) -> None:
    with pytest.raises(BudgetError):
        packed(tmp_path / "m.pgolf", budget=300)
    assert [file.name for file in tmp_path.iterdir()] == ["m.pgolf.work"]
    assert packed(tmp_path / "m.pgolf").data == whole
    assert [file.name for file in tmp_path.iterdir()] == ["m.pgolf"]


def test_a_plane_comes_back_as_it_was(tmp_path: Path) -> None:
    found = Work.at(tmp_path / "w", "k")
    assert found is not None
    job = pgolf.fitting.inputs.job_of(state(), search=True)  # type: ignore[attr-defined]
    assert isinstance(job, Job)
    for trellis_step in (0.25, 4.0):
        plane = job.round("w1", 0, trellis_step)
        found.keep_plane("w1", 0, trellis_step, plane)
        again = found.plane("w1", 0, trellis_step)
        assert again is not None
        assert again.codes.dtype == np.int16
        assert (again.codes == plane.codes).all()
        assert (again.reconstruct() == plane.reconstruct()).all()
        assert (again.trellis, again.trellis_from) == (plane.trellis, plane.trellis_from)
        assert found.plane("w1", 1, trellis_step) is None
    assert (found.plane("w1", 0, 0.5), found.coded(0.25)) == (None, None)
