import pytest
import torch

from pgolf.models import ties
from tests.helpers import generator

W = torch.randn(32, 16, generator=generator())


def test_one_storage_and_equal_matrices_are_one():
    assert ties.find({"a": W, "b": W, "c": W.clone(), "d": W + 1}) == {"b": "a", "c": "a"}


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(4096), torch.zeros(64, 64), torch.full((64, 64), 3), W[:4], torch.arange(4096), torch.zeros(0, 99)],
    ids=["vector", "zeros", "constant", "small", "positions", "empty"],
)
def test_what_is_equal_by_how_it_starts_is_not(tensor):
    assert ties.find({"a": tensor, "b": tensor.clone()}) == {}


@pytest.mark.parametrize("other", [W.bfloat16(), W.reshape(16, 32), W.t().contiguous(), -W, W.double()])
def test_dtype_shape_and_every_value_count(other):
    assert ties.find({"a": W, "b": other}) == {}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.complex64, torch.int8, torch.bool])
def test_any_dtype(dtype):
    w = W > 0 if dtype == torch.bool else (W * 50).to(dtype)
    other = w.clone()
    assert ties.find({"a": w, "b": other}) == {"b": "a"}
    assert ties.equal(w, other)


def test_layout_does_not_count_and_the_sign_of_zero_does():
    assert ties.find({"a": W, "b": W.t().contiguous().t()}) == {"b": "a"}
    signed = W.clone()
    signed[3, 3] = 0.0
    other = signed.clone()
    other[3, 3] = -0.0
    assert ties.find({"a": signed, "b": other}) == {}


def test_the_one_that_would_win():
    tied = {"head": "emb", "out": "emb"}
    assert ties.differing({"emb": W, "head": W.clone(), "other": W + 1}, tied) is None
    assert ties.differing({"emb": W, "head": W + 1}, tied) == ("emb", "head")
    assert ties.differing({"head": W, "out": W + 1}, tied) == ("head", "out")


def test_what_has_no_numbers_is_never_equal():
    assert not ties.equal(torch.empty(3, device="meta"), torch.empty(3, device="meta"))
    assert not ties.equal(torch.eye(3).to_sparse(), torch.eye(3).to_sparse())
