"""models/products.py: oneDNN multiplies where it does so in full, and the switch is as before."""

import pytest
import torch

from pgolf.models import products
from pgolf.models.logits import undisturbed

CPU = torch.device("cpu")
now = torch.get_float32_matmul_precision


@pytest.fixture(autouse=True)
def _as_before():
    before = now()
    products._in_full.cache_clear()
    yield
    products._in_full.cache_clear()
    torch.set_float32_matmul_precision(before)


def test_what_runs_inside_is_exact_to_float32():
    a = torch.randn((300, 700), generator=torch.Generator().manual_seed(1))
    with products.by_onednn(CPU):
        found = a @ a.T
    true = a.double() @ a.T.double()
    assert float((found - true).norm() / true.norm()) < 1e-6


def _fails():
    with products.by_onednn(CPU):
        assert now() == ("medium" if products._in_full() else "high")
        raise ZeroDivisionError


def test_switch_is_back_after_an_error():
    torch.set_float32_matmul_precision("high")
    with pytest.raises(ZeroDivisionError):
        _fails()
    assert now() == "high"


def test_processor_that_rounds_to_bfloat16_is_left_alone(monkeypatch):
    def rounds(a, b):
        return torch.mm(a.bfloat16(), b.bfloat16()).float() if now() == "medium" else torch.mm(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounds)
    assert not products._in_full()
    with products.by_onednn(CPU):
        assert now() == "highest"


def test_products_on_a_gpu_are_left_alone():
    with products.by_onednn(torch.device("cuda")):
        assert now() == "highest"


def test_precision_chosen_by_the_newer_switches_is_kept(monkeypatch):
    def mixed():
        raise RuntimeError("a mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    with products.by_onednn(CPU):
        pass
    assert now() == "highest"


def test_a_users_model_runs_inside():
    with undisturbed(torch.nn.Linear(2, 2), gradients=True):
        assert now() == ("medium" if products._in_full() else "highest")
