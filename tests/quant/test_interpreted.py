"""The compiled loops of quantizing and coding are the Python that stands in their files: the same codes, not compiled."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from pgolf.packer.backends import registry
from pgolf.packer.coder import codec
from pgolf.quant import METHODS
from pgolf.quant.settings import Settings
from tests.quant.test_auto import correlated, random_matrix

CASES = [(states, two_sided) for states in (0, 8) for two_sided in (False, True)]


def digest(states: int, two_sided: bool) -> str:
    """Of the codes of a small matrix with rows of all widths, packed and unpacked."""
    weight, curvature = random_matrix(20, 12)
    weight = weight * torch.logspace(-2, 1, 20)[:, None]
    settings = Settings(trellis=states, step=3.0, two_sided=two_sided)
    plane = METHODS["auto"].quantize(weight, correlated(curvature), settings)
    packed = codec.encode([plane], registry.loops())
    back = codec.read(packed.head, packed.sections, registry.loops(), registry.host())[0].codes
    assert (back == plane.codes).all()
    return hashlib.sha256(np.ascontiguousarray(back, np.int32)).hexdigest()


@pytest.fixture(scope="module")
def interpreted():
    """What a process prints in which nothing is compiled."""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-m", "tests.quant.test_interpreted"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()


@pytest.mark.parametrize("case", CASES)
def test_compiled_and_interpreted_codes_are_the_same(case, interpreted):
    assert digest(*case) == interpreted[CASES.index(case)]


if __name__ == "__main__":
    for case in CASES:
        print(digest(*case))
