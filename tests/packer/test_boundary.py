"""The packer stands alone: a fresh process packs and unpacks without torch, and without numba too."""

import os
import subprocess
import sys

import numpy as np
import pytest

from pgolf import packer

PROGRAM = """
import sys
for blocked in sys.argv[2:]:
    sys.modules[blocked] = None
import numpy as np
import pgolf.packer
data = open(sys.argv[1], "rb").read()
codes = pgolf.packer.decode(data)
assert pgolf.packer.encode(codes) == data
print(sorted(name for name in ("torch", "numba", "matplotlib") if sys.modules.get(name)))
print(int(codes["w"].sum()))
"""


@pytest.fixture
def artifact_file(tmp_path):
    codes = np.random.default_rng(0).normal(0, 2, (300, 70)).round().astype(np.int8)
    (tmp_path / "codes.pgolf").write_bytes(packer.encode({"w": codes}))
    return tmp_path / "codes.pgolf", int(codes.sum(dtype=int))


@pytest.mark.parametrize("blocked", [("torch",), ("torch", "numba"), ("torch", "numba", "scipy", "click", "rich")])
def test_a_fresh_process_packs_without(artifact_file, blocked):
    path, total = artifact_file
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(path), *blocked],
        capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    loaded, printed = result.stdout.splitlines()
    assert loaded == ("[]" if "numba" in blocked else "['numba']")
    assert int(printed) == total


def test_importing_does_no_work():
    program = (
        "import sys, pgolf.packer; print([m for m in ('numpy.random', 'numba', 'torch', 'brotli') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not {"numba", "torch", "brotli"} & set(eval(out))
