"""A pack that is broken off after its calibration does not calibrate again, and ends with the same bytes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from pgolf.cli import main
from pgolf.common import ranks
from pgolf.fitting import kept_curvature, resume
from pgolf.fitting.kept_curvature import NOTE
from pgolf.quant.curvature import collect
from pgolf.quant.curvature.store import Curvature
from tests import helpers

WORK = "m.pgolf.work"
LINE = ("pack", "ckpt.pt", "--model", "toy.py:Toy", "--calib", "val.bin", "--tokens", "512", "--budget", "9kB")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    helpers.sweep_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kept_curvature, "WORTH", 0.0)
    return tmp_path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every calibration."""
    times, calibrate = list[int](), collect.calibrate

    def counted(*given: Any, **more: Any) -> Curvature:
        times.append(1)
        return calibrate(*given, **more)

    monkeypatch.setattr(collect, "calibrate", counted)
    return times


def run(*more: str) -> Result:
    return CliRunner().invoke(main, [*LINE, "-o", "m.pgolf", "--force", "--json", *more])


def break_off(monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pgolf.fitting.packing.artifact.write", broken)
        found = run(*more)
    assert found.exit_code not in (0, 2)
    assert not Path("m.pgolf").exists()
    assert f"{WORK} has what is measured or rounded so far" in found.stderr


def kept() -> list[Path]:
    return sorted(Path(WORK).glob("curvature-*"))


def whole() -> bytes:
    """What a pack that nobody breaks off makes."""
    run()
    data = Path("m.pgolf").read_bytes()
    Path("m.pgolf").unlink()
    return data


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("rounded", [0.0, 1e9])
def test_it_goes_on(measured: list[int], rounded: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "WORTH", rounded)
    expected = whole()
    break_off(monkeypatch)
    assert len(kept()) == 1
    measured.clear()
    made = run()
    assert Path("m.pgolf").read_bytes() == expected
    assert not measured
    assert NOTE in json.loads(made.stdout)["notes"]
    assert not Path(WORK).exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "more", [("--seed", "1"), ("--tokens", "256"), ("--seq-len", "16"), ("--calib", "val.bin"), ("--method", "rtn")]
)
def test_only_the_same_measurement_is_taken(
    more: tuple[str, ...], measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(monkeypatch)
    if "--calib" in more:
        data = bytearray(Path("val.bin").read_bytes())
        data[1024:3000:2] = bytes(byte ^ 1 for byte in data[1024:3000:2])  # the first tokens, behind the header
        Path("val.bin").write_bytes(data)
        more = ()
    measured.clear()
    made = run(*more)
    assert made.exit_code == 0, made.stderr
    assert NOTE not in json.loads(made.stdout)["notes"] or "rtn" in more
    assert len(measured) == (0 if "rtn" in more else 1)
    assert not Path(WORK).exists()


@pytest.mark.usefixtures("here")
def test_another_model_of_the_same_shapes_is_measured(measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(monkeypatch)
    Path("toy.py").write_text(Path("toy.py").read_text() + "\n# changed\n")
    measured.clear()
    assert run().exit_code == 0
    assert len(measured) == 1
    weights = torch.load("ckpt.pt")
    weights["tok_emb.weight"][0, 0] += 1
    Path("m.pgolf").unlink()
    break_off(monkeypatch)
    torch.save(weights, "ckpt.pt")
    measured.clear()
    assert run().exit_code == 0
    assert len(measured) == 1


@pytest.mark.usefixtures("here")
def test_a_second_break_keeps_one(monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(monkeypatch)
    break_off(monkeypatch, "--seed", "1")
    assert len(kept()) == 1


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: b"", lambda data: b"\x7f" + data[1:]])
def test_a_damaged_file_is_measured_anew(damage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole()
    break_off(monkeypatch)
    (file,) = kept()
    file.write_bytes(damage(file.read_bytes()))
    made = run()
    assert NOTE not in json.loads(made.stdout)["notes"]
    assert Path("m.pgolf").read_bytes() == expected
    assert not Path(WORK).exists()


@pytest.mark.usefixtures("here")
def test_short_ones_full_disks_and_ranks_keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for change in (
        lambda patch: patch.setattr(kept_curvature, "WORTH", 1e9),
        lambda patch: patch.setattr(Curvature, "save", full),
        lambda patch: patch.setattr(kept_curvature.ranks, "grouped", lambda: True),
    ):
        with monkeypatch.context() as patch:
            change(patch)
            made = kept_curvature.KeptCurvature.beside(Path("m.pgolf"), []).or_measured(Curvature)
        assert made.tokens == 0
        assert not kept()
    assert not ranks.grouped()


@pytest.mark.usefixtures("here")
def test_a_folder_of_somebody_elses_keeps_what_is_his() -> None:
    Path(WORK).mkdir()
    (Path(WORK) / "thesis.tex").write_text("mine")
    assert run().exit_code == 0
    assert [file.name for file in Path(WORK).iterdir()] == ["thesis.tex"]
