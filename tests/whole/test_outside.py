"""The example of a quantizer in a package of its own: installed as pip would, driven by the command line."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import Entry
from pgolf.quant import MatrixCurvature, Settings
from tests.helpers import generator, sweep_inputs

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "outside"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, and beside it in site/ what `pip install examples/outside --target site` leaves."""
    made = tmp_path_factory.mktemp("outside")
    sweep_inputs(made)
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    name, version = project["project"]["name"], project["project"]["version"]
    info = made / "site" / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = project["project"]["entry-points"].items()
    lines = [line for group, points in groups for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))]
    (info / "entry_points.txt").write_text("\n".join(lines))
    for module in project["tool"]["setuptools"]["py-modules"]:
        (made / "site" / f"{module}.py").write_bytes((EXAMPLE / f"{module}.py").read_bytes())
    return made


def pgolf(folder: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder / "site")]),
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-m", "pgolf", *map(str, arguments)]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


MODEL = ("--model", "toy.py:Toy")


@pytest.mark.slow
def test_pack_and_inspect_name_it_and_its_settings(folder: Path) -> None:
    pgolf(folder, "calibrate", "ckpt.pt", *MODEL, "--calib", "val.bin", "--tokens", 2048, "-o", "curv.safetensors")
    known = ("--curvature", "curv.safetensors", "--budget", "8kB", "--json", "--force")
    spec = ("--method", "awq:grid=4", "--set", "up.*=width=.5", "--set", "down.*=auto,trellis=4")
    facts = json.loads(pgolf(folder, "pack", "ckpt.pt", *known, *spec).stdout)
    methods = {row["name"]: row["method"] for row in facts["rows"]}
    assert facts["artifact_bytes"] <= 8000
    assert methods["tok_emb.weight"].startswith("awq grid=4 width=0.3 step=")
    assert methods["up.weight"].startswith("awq grid=4 width=0.5 step=")
    assert methods["down.weight"].startswith("auto trellis=4")
    seen = json.loads(pgolf(folder, "inspect", "ckpt.pgolf", "--json").stdout)
    assert {t["name"]: t["note"] for t in seen["tensors"] if "note" in t}["up.weight"] == methods["up.weight"]


def test_its_grid_pays_where_inputs_differ_in_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    awq = importlib.import_module("pgolf_awq")
    weight = torch.randn(64, 96, generator=generator())
    strength = torch.exp(2 * torch.randn(96, generator=generator(1)))
    size, damage = {}, {}
    for grid in (1, 8):
        plane = awq.quantize(weight, MatrixCurvature(strength.diag()), Settings("awq", own=awq.AWQ(grid)))
        size[grid] = len(artifact.encode({"w": Entry("float32", (64, 96), planes=(plane,))}).data)
        damage[grid] = float((np.square(weight.numpy() - plane.reconstruct()) @ strength.numpy()).sum())
    assert damage[8] < damage[1] / 4  # measured: 6.7 times less for 6% more bytes
    assert size[8] < 1.1 * size[1]


@pytest.mark.slow
def test_sweep_draws_a_curve_for_each_of_its_settings(folder: Path) -> None:
    points = ("--bits", "4,6", "--methods", "awq:grid=1,awq:grid=8,rtn", "--baseline", "rtn", "--jobs", 2)
    text = ("--data", "val.bin", "--bytes", "bytes.bin", "--seq-len", 64, "--calib", "val.bin", "--tokens", 2048)
    results = json.loads(pgolf(folder, "sweep", "ckpt.pt", *MODEL, *text, *points, "-o", "s", "--json").stdout)
    series = {p["series"] for p in results["points"]}
    assert series == {"awq:grid=1", "awq:grid=8", "rtn"}
    assert all(p["bytes"] for p in results["points"])
    assert "awq:grid=8" in (folder / "s" / "frontier.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "code", "says"),
    [
        ("awq:grid=0", 2, "--method 'awq:grid=0': grid is 0: it must lie between 1 and 100"),
        ("awq:gird=3", 2, "'gird=3' is not a setting; did you mean grid?"),
        ("swapped", 3, "the package broken: its method 'swapped' cannot be loaded (ModuleNotFoundError: No module"),
    ],
)
def test_mistakes_are_one_line(folder: Path, spec: str, code: int, says: str) -> None:
    info = folder / "site" / "broken-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pgolf.methods]\nswapped = no_such_module:METHOD\n")
    done = pgolf(folder, "pack", "ckpt.pt", "--method", spec, "-o", "m.pgolf", code=code)
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_example_is_under_sixty_lines() -> None:
    assert sum(len(file.read_text().splitlines()) for file in EXAMPLE.iterdir() if file.is_file()) < 60
