"""Without triton everything but CUDA works; kernels compile for an H100 without one."""

import json
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from pgolf.cli import main
from tests.helpers import toy_module, toy_state
from tests.kernels.places import needs_triton

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import pgolf, torch
from pgolf.cli import main
from click.testing import CliRunner
for command in ("pack", "inspect", "unpack", "eval", "train", "bench", "demo"):
    assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0, command
import pgolf.bench.suite
from pgolf.kernels import dequant, packed, quant_linear, rans_decode, softcap_nll
from pgolf.loading import dense, modules, on_device
path = sys.argv[1]
state = pgolf.load(path)
assert all(torch.equal(state[n], t) for n, t in dense.load_by(path, on_device.OnDevice(torch.device("cpu"))).items())
from tests.helpers import toy_module
model = toy_module(dict(state))
print(pgolf.load_module(path, model, packed=True))
model.forward_logits(torch.zeros(1, 3, dtype=torch.int64))
"""


WEIGHTS_A_THREAD = 64 * 512 // 128  # of a step of quant_linear
MOST_INSTRUCTIONS = {"4": 8.5, "5": 12.5, "6": 11.5, "8": 11.5}  # a weight; docs/KERNELS.md tells them, rounded


def process(*arguments):
    """A Python of its own, in which Triton compiles."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_works_without_triton(tmp_path):
    import pgolf

    pgolf.pack(toy_module(toy_state()), tmp_path / "t.pgolf", method="rtn")
    assert "3 tensors packed" in process("-W", "error", "-c", WITHOUT_TRITON, str(tmp_path / "t.pgolf"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("arguments", [("bench",), ("eval", "m.pt", "--data", "v.bin", "--bytes", "b.bin")])
def test_asking_for_cuda_says_what_is_missing(arguments):
    result = CliRunner().invoke(main, [*arguments, "--device", "cuda"])
    assert result.exit_code == 3
    assert result.stderr.startswith("pgolf: cuda was asked for, but torch")
    assert len(result.stderr.splitlines()) == 1


def test_importing_pgolf_imports_no_triton():
    assert (
        process("-c", "import sys, pgolf, pgolf.fitting.packing, pgolf.cli; print('triton' in sys.modules)")
        == "False\n"
    )


@needs_triton
@pytest.mark.slow
def test_kernels_compile_for_an_h100():
    facts = json.loads(process("-m", "tests.kernels.ahead"))
    assert {name.split()[0] for name in facts} == {
        "dequant",
        "softcap_nll",
        "rans_decode",
        "round",
        "strips",
        "unpack",
        "quant_linear",
    }
    for name, fact in facts.items():
        assert fact["stack"] == fact["local"] == 0, f"{name} spills"
        if "rans_decode" in name:
            assert fact["barriers"] == fact["shared"] == 0, "lanes wait for nobody"
            assert fact["reg"] <= 64
        elif "round" in name:
            assert fact["reg"] <= 255
        elif "strips" in name:
            assert fact["reg"] <= 128  # strips begin anywhere, so loads are as narrow as codes
        elif "4100" not in name and "100x7" not in name:
            assert max(fact["loads"]) == 128, f"{name} loads narrowly"
        if "dequant" in name or "unpack" in name:
            assert max(fact["stores"]) == 128, f"{name} stores narrowly"
        if "quant_linear" in name:
            assert fact["matrix"] > 0, f"{name} leaves the matrix units alone"
            wide = any(f"{rows}x" in name for rows in (8192, 1000))
            assert (fact["wide_matrix"] > 0) == wide, f"{name} does not use Hopper's"
            assert fact["shared"] <= 227 << 10
            assert 2 * fact["reg"] * 32 * fact["warps"] <= 1 << 16, f"{name}: one program of a processor"
            if name.split()[2] in {"1", "4", "16"}:
                assert 2 * (fact["shared"] + 1024) <= 228 << 10, f"{name}: one program of a processor"
            if name.endswith(("16 8192x8192", " 4 8192x8192")):
                assert fact["instructions"] / WEIGHTS_A_THREAD <= MOST_INSTRUCTIONS[name.split()[1]], name
            assert fact["handover"], f"{name}: sums may be read before they are written"


def test_this_machine_has_what_its_tests_say():
    """A GPU run that silently used the CPU would pass everything."""
    if os.environ.get("PGOLF_NEEDS_GPU"):
        assert torch.cuda.is_available()
