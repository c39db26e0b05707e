"""Every example runs, needs few lines of pgolf, and gives the command line's bytes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import pgolf
from pgolf.cli import main

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ["linear", "banks", "folder"]
SAVE = """
import runpy, sys
made = runpy.run_path(sys.argv[1], run_name="__main__")
made["curvature"].save("curvature.safetensors")
open("estimate.txt", "w").write(str(made["pgolf"].estimate(made["SOURCE"], budget=sys.argv[2]).num_bytes))
"""
BUDGETS = {"linear": "60kB", "banks": "60kB", "folder": "100kB"}
CHECKPOINTS = {"linear": "ckpt.pt", "banks": "ckpt.pt", "folder": "model"}


def run(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request, tmp_path_factory):
    """(name, folder where it ran, what it printed)."""
    folder = tmp_path_factory.mktemp(request.param)
    script = folder / f"{request.param}.py"
    script.write_bytes((ROOT / "examples" / script.name).read_bytes())
    code = SAVE.replace('made["SOURCE"]', repr(CHECKPOINTS[request.param]))
    return request.param, folder, run(folder, "-c", code, script.name, BUDGETS[request.param])


@pytest.mark.slow
def test_the_artifact_is_the_command_lines_byte_for_byte(example):
    name, folder, printed = example
    again = folder / "again.pgolf"
    code = ("--code", str(folder / "banks.py")) if name == "banks" else ()
    arguments = ["--budget", BUDGETS[name], "--curvature", str(folder / "curvature.safetensors"), "-o", str(again)]
    done = CliRunner().invoke(main, ["pack", str(folder / CHECKPOINTS[name]), *arguments, *code])
    assert done.exit_code == 0, done.stderr
    assert again.read_bytes() == (folder / "model.pgolf").read_bytes()
    figures = [float(f) for f in re.findall(r"(?:before|after|to|bpb) +([0-9.]+)", printed)]
    assert len(figures) == 2
    assert 2 < figures[0] < 5
    assert figures[0] == pytest.approx(figures[1], abs=0.05)


@pytest.mark.slow
def test_estimate_foresees_the_bytes_within_two_percent(example):
    name, folder, _ = example
    made = pgolf.pack(folder / CHECKPOINTS[name], None, budget=BUDGETS[name])
    assert int((folder / "estimate.txt").read_text()) == pytest.approx(made.artifact_bytes, rel=0.02)


@pytest.mark.parametrize("name", EXAMPLES)
def test_at_most_ten_lines_speak_of_pgolf(name):
    lines = (ROOT / "examples" / f"{name}.py").read_text().split('"""', 2)[2].splitlines()
    marked = [line for line in lines if "# pgolf" in line]
    assert 0 < len(marked) <= 10
    assert [line for line in lines if "pgolf" in line.replace("model.pgolf", "")] == marked


def test_a_state_dict_packs_as_its_module_does():
    torch.manual_seed(0)
    module = torch.nn.Linear(64, 64)
    assert pgolf.pack(module, None).data == pgolf.pack(module.state_dict(), None).data
