"""Somebody else's kernels are compared with ours where they run, and end nothing where they do not."""

from dataclasses import replace

import pytest
import torch

from pgolf.bench import rivals
from pgolf.bench.sizes import TOY
from tests.kernels.places import on_gpu

CPU = torch.device("cpu")
SIZES = replace(TOY, compared=((16, 256),), inputs=(1, 3))


def test_what_fails_is_told_and_the_rest_measured(monkeypatch: pytest.MonkeyPatch):
    def fails_later(codes):
        def work(x):
            raise RuntimeError("no kernel image\nfor this device")

        return work

    made = {"late": fails_later, "works": lambda codes: lambda x: x @ codes.T.bfloat16()}
    made["absent"] = lambda codes: __import__("no_such_package")
    monkeypatch.setattr(rivals, "RIVALS", made)
    rows = rivals.compared(CPU, SIZES)
    assert [(row["shape"], row["inputs"]) for row in rows] == [((16, 256), 1), ((16, 256), 3)]
    for row in rows:
        assert row["absent"] == "ModuleNotFoundError: No module named 'no_such_package'"
        assert row["late"] == "RuntimeError: no kernel image"
        assert all(row[name].keys() == {"hot", "cold"} for name in ("quant_linear", "matmul", "works"))


def test_what_takes_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rivals, "RIVALS", {})
    monkeypatch.setattr(rivals, "LONGEST", 0.0)
    rows = rivals.compared(CPU, SIZES)
    assert {row["matmul"] for row in rows} == {"left out: 0 s were spent on it"}


class TestOnTheGpu:
    pytestmark = on_gpu

    def test_torchs_own_is_given_what_it_wants(self):
        codes = torch.randint(-8, 8, (512, 512), device="cuda")
        product = rivals.RIVALS["tinygemm"](codes)
        x = torch.randn(4, 512, device="cuda").bfloat16()
        assert product(x).shape == (4, 512)
