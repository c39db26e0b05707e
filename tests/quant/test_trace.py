"""Where a used matrix lies in its parameter, and what the tracer tells of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pgolf.errors import CurvatureError
from pgolf.quant.curvature.trace import Piece, Rectangle, Tracer, locate


class Told:
    """A sink that keeps what it hears."""

    def __init__(self) -> None:
        self.products: list[tuple[list[Rectangle], Tensor, Tensor]] = []
        self.lookups: list[tuple[Rectangle, Tensor]] = []
        self.lost: list[tuple[str, str]] = []

    def product(self, rectangles, x, y, flat) -> None:
        self.products.append((list(rectangles), x, flat(y.detach())))

    def lookup(self, rectangle, ids, y, without=None) -> None:
        self.lookups.append((rectangle, ids))

    def unknown(self, name, function) -> None:
        self.lost.append((name, function))


def trace(function, **parameters: Tensor) -> Told:
    told = Told()
    with Tracer(parameters, told):
        function(**parameters)
    return told


def rebuilt(rectangles: list[Rectangle], parameters: dict[str, Tensor]) -> Tensor:
    """The used matrix [O, I] put together from the rectangles."""
    used = torch.full((max(b.outputs.stop for b in rectangles), max(b.inputs.stop for b in rectangles)), torch.nan)
    for b in rectangles:
        value = parameters[b.name]
        part = (value.flatten(1) if value.dim() == 2 or b.whole else value[b.index])[b.rows, b.cols] * b.scale
        used[b.outputs, b.inputs] = part.T if b.transposed else part
    return used


def check(function, **parameters: Tensor) -> Told:
    """Every product's rectangles give back the matrix that took x to y."""
    told = trace(function, **parameters)
    assert told.products
    for rectangles, x, y in told.products:
        assert torch.allclose(x @ rebuilt(rectangles, parameters).T, y, atol=1e-5)
    return told


X = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
W = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
BANK = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(2))

PRODUCTS = {
    "linear": lambda w: F.linear(X, w),
    "linear, named": lambda w: F.linear(input=X, weight=w),
    "matmul": lambda w: X @ w.T,
    "matmul, w left": lambda w: w @ X.mT,
    "matmul, one vector": lambda w: X[0, 0] @ w.t(),
    "mv": lambda w: torch.mv(w, X[0, 0]),
    "mm": lambda w: X[0].mm(w.mT),
    "addmm": lambda w: torch.addmm(torch.zeros(4), X[0], w.T),
    "addmv": lambda w: torch.addmv(torch.zeros(4), w, X[0, 0]),
    "inner": lambda w: torch.inner(X, w),
    "tensordot": lambda w: torch.tensordot(X, w, dims=([2], [1])),
    "tensordot, w left": lambda w: torch.tensordot(w, X, ([1], [2])),
    "tensordot, last with first": lambda w: torch.tensordot(X, w.T, 1),
    "conv1d of one": lambda w: F.conv1d(X.mT, w[..., None]),
    "einsum, three operands": lambda w: torch.einsum("bti,oi,bt->bto", X, w, torch.arange(6.0).view(2, 3)),
    "einsum, mask": lambda w: torch.einsum("bti,i,oi->bto", X, torch.arange(6.0), w),
    "einsum": lambda w: torch.einsum("b t i, o i -> b o t", X, w),
    "einsum, list": lambda w: torch.einsum("oi,bti->bto", [w, X]),
    "einsum, ellipsis": lambda w: torch.einsum("...i,oi->...o", X, w),
    "einsum, implicit": lambda w: torch.einsum("ij,kj", X[0], w),
    "einsum, implicit, many letters": lambda w: torch.einsum("bti,ui", X, w),
    "einsum, implicit and ellipsis": lambda w: torch.einsum("...i,oi", X, w),
    "einsum, letters in no order": lambda w: torch.einsum("zi,ai", X[0], w),
    "einsum, two ellipses": lambda w: torch.einsum("...i,...oi->...o", X, w),
    "einsum, view": lambda w: torch.einsum("bti,phi->bthp", X, w.view(2, 2, 6)),
    "rows": lambda w: F.linear(X, w[1:3]),
    "every second row": lambda w: F.linear(X, w[::2]),
    "columns": lambda w: F.linear(X[..., 2:5], w[:, 2:5]),
    "both": lambda w: F.linear(X[..., 1:4], w[1:3, 1:4]),
    "one row": lambda w: F.linear(X, w[2:3]),
    "one column": lambda w: F.linear(X[..., :1], w[:, 3:4]),
    "wrong way round": lambda w: X[..., :4] @ w,
    "casts": lambda w: F.linear(X.double(), w.to(torch.float64).contiguous().clone()),
    "scaled": lambda w: F.linear(X, 0.5 * w / 3),
    "detached": lambda w: F.linear(X, w.data.detach()),
    "unsqueezed": lambda w: torch.matmul(X, w.T.unsqueeze(0)),
    "joined with itself": lambda w: F.linear(X, torch.cat([w[2:], w[:2]])),
    "joined by columns": lambda w: X @ torch.cat([w[:, 3:], w[:, :3]], dim=1).T,
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_a_matrix(name: str) -> None:
    told = trace(PRODUCTS[name], w=W)
    ((rectangles, x, y),) = told.products
    assert torch.allclose(x.float() @ rebuilt(rectangles, {"w": W}).T, y.float(), atol=1e-5)
    assert told.lost == []


BANKS = {
    "index": lambda bank: F.linear(X, bank[1]),
    "tensor index": lambda bank: F.linear(X, bank[torch.tensor(2)]),
    "loop": lambda bank: [F.linear(X, w) for w in bank],
    "unbind": lambda bank: [X @ w.T for w in bank.unbind(0)],
    "chunk": lambda bank: [X @ w[0].T for w in bank.chunk(3)],
    "flattened": lambda bank: F.linear(X, bank.flatten(0, 1)),
    "flattened part": lambda bank: F.linear(X, bank.view(12, 6)[2:9]),
    "bmm": lambda bank: torch.bmm(X[:1].expand(3, -1, -1), bank.mT),
    "broadcast": lambda bank: X[:, None] @ bank.mT,
    "einsum": lambda bank: torch.einsum("bti,noi->btno", X, bank[:1]),
    "einsum, many": lambda bank: torch.einsum("nti,noi->nto", X[:1].expand(3, -1, -1), bank),
    "left": lambda bank: bank @ X[0].mT,
    "transposed slice": lambda bank: X[..., :4] @ bank[2],
    "baddbmm": lambda bank: torch.baddbmm(torch.zeros(3, 3, 4), X[:1].expand(3, -1, -1), bank.mT),
    "tensordot": lambda bank: torch.tensordot(X.new_ones(2, 4, 6), bank, ([1, 2], [1, 2])),
    "as one matrix": lambda bank: F.linear(X.new_ones(2, 24), bank.view(3, 24)),
}


@pytest.mark.parametrize("name", BANKS)
def test_products_of_a_bank(name: str) -> None:
    told = check(BANKS[name], bank=BANK)
    assert told.lost == []


LONG = torch.randn(2, 4, 11, 9, generator=torch.Generator().manual_seed(3))
CONVOLUTIONS = {
    "1d": ((6, 4, 3), lambda w: F.conv1d(LONG[..., 0], w)),
    "1d, all said": ((6, 4, 3), lambda w: F.conv1d(LONG[..., 0], w, stride=2, padding=2, dilation=2)),
    "1d, unbatched": ((6, 4, 3), lambda w: F.conv1d(LONG[0, ..., 0], weight=w, padding="same")),
    "1d, same and even": ((6, 4, 2), lambda w: F.conv1d(LONG[..., 0], w, padding="same")),
    "1d, groups": ((6, 2, 3), lambda w: F.conv1d(LONG[..., 0], w, groups=2)),
    "1d, depthwise": ((4, 1, 3), lambda w: F.conv1d(F.pad(LONG[..., 0], (2, 0)), w, groups=4)),
    "1d, of one": ((6, 4, 1), lambda w: F.conv1d(LONG[..., 0], w)),
    "2d": ((6, 4, 3, 2), lambda w: F.conv2d(LONG, w, None, (2, 1), (1, 0))),
    "2d, groups": ((6, 2, 3, 3), lambda w: F.conv2d(LONG, w, padding=1, groups=2)),
    "3d": ((5, 2, 2, 2, 2), lambda w: F.conv3d(LONG.view(1, 2, 4, 11, 9), w)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_products_with_windows(name: str) -> None:
    shape, convolve = CONVOLUTIONS[name]
    w = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    told = trace(convolve, w=w)
    assert told.lost == []
    assert len(told.products) == 4 // shape[1] if len(shape) < 5 else 1
    used = torch.full((shape[0], w[0].numel()), torch.nan)
    for rectangles, x, y in told.products:
        (b,) = rectangles
        mine = (w.flatten(1) if b.whole or w.dim() > 3 else w[b.index])[b.rows, b.cols]
        assert torch.allclose(x @ mine.T, y, atol=1e-4)
        used[b.rows if b.whole else b.index] = mine
    assert torch.equal(used, w.flatten(1))


def test_a_sum_with_a_product_of_parameters_is_the_matrix() -> None:
    A, B = W[:, :2].clone(), W[:2].clone()
    told = trace(lambda w, A, B: F.linear(X, w + A @ B), w=W, A=A, B=B)
    ((rectangles, _, _),) = told.products
    assert torch.equal(rebuilt(rectangles, {"w": W}), W)
    assert {name for name, _ in told.lost} == {"A", "B"}


def test_what_is_added_to_activations_is_not_followed() -> None:
    told = trace(lambda w: F.linear(X[0, :, :4] @ torch.ones(4, 6) + w[:3], torch.ones(2, 6)), w=W)
    assert told.products == []
    assert told.lost == [("w", "add")]


def test_a_sum_over_a_batch_of_products() -> None:
    """addbmm's output is shared: every matrix sees all of its gradient."""
    told = trace(lambda bank: torch.addbmm(torch.zeros(3, 4), X[:1].expand(3, -1, -1), bank.mT), bank=BANK)
    assert len(told.products) == 3
    total = sum(x @ rebuilt(rectangles, {"bank": BANK}).T for rectangles, x, _ in told.products)
    assert all(torch.allclose(total, y, atol=1e-5) for _, _, y in told.products)


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this torch has no grouped products")
def test_grouped_products() -> None:
    x = torch.randn(9, 16, generator=torch.Generator().manual_seed(5)).bfloat16()
    bank = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(6)).bfloat16()
    offs = torch.tensor([4, 4, 9], dtype=torch.int32)
    try:
        told = trace(lambda bank: torch._grouped_mm(x, bank, offs=offs), bank=bank)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"grouped products do not run here: {error}")
    assert [(r[0].index, len(x)) for r, x, _ in told.products] == [(0, 4), (1, 0), (2, 5)]
    for rectangles, x, y in told.products:
        assert torch.allclose(x.float() @ rebuilt(rectangles, {"bank": bank.float()}).T, y.float(), atol=0.2)


def test_pieces_of_several_parameters() -> None:
    check(lambda w, bank: F.linear(X, torch.cat([w, bank[1], bank[0]])), w=W, bank=BANK)


@pytest.mark.parametrize(
    "lookup", [lambda w, ids: F.embedding(ids, w), lambda w, ids: w[ids], lambda w, ids: w.index_select(0, ids[0])]
)
def test_lookups(lookup) -> None:
    ids = torch.tensor([[1, 3, 3]])
    told = trace(lambda w: lookup(w, ids), w=W)
    ((rectangle, seen),) = told.lookups
    assert seen.flatten().tolist() == [1, 3, 3]
    assert (rectangle.rows, rectangle.cols) == (slice(0, 4, 1), slice(0, 6, 1))


LOST = {
    "mul": lambda w: F.linear(X, w * torch.ones(6)),
    "norm": lambda w: F.linear(X, w / w.norm(dim=1, keepdim=True)),
    "conv_transpose1d": lambda w: F.conv_transpose1d(X.mT, w.T[..., None]),
    "reshape": lambda w: F.linear(X, w.T.reshape(4, 6)),
    "expand": lambda w: F.linear(X, w[:1].expand(4, 6)),
    "einsum": lambda w: torch.einsum("bti,oi->bt", X, w),
    "einsum of any size": lambda w: torch.einsum("bti,oi->bto", X[..., :1], w),
    "mm": lambda w: w @ w.T,
    "__getitem__": lambda w: w[torch.tensor([True, False, True, False])],
}


@pytest.mark.parametrize("name", LOST)
def test_what_cannot_be_followed_is_named(name: str) -> None:
    told = trace(LOST[name], w=W)
    assert told.products == []
    assert "w" in {name for name, _ in told.lost}


def test_questions_about_a_weight_are_no_use() -> None:
    told = trace(lambda w: (w.shape, w.dtype, w.device, w.size(0), w.dim(), w.is_contiguous(), w.requires_grad), w=W)
    assert (told.products, told.lookups, told.lost) == ([], [], [])


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.dropout(X, 0.1),
        lambda: F.scaled_dot_product_attention(X, X, X, dropout_p=0.1),
    ],
)
def test_dropout_that_is_always_on(call) -> None:
    with pytest.raises(CurvatureError, match="dropout"):
        trace(lambda w: call(), w=W)


def test_dropout_that_is_off() -> None:
    assert trace(lambda w: F.dropout(X, 0.1, training=False), w=W).lost == []


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)),
    st.data(),
)
def test_locate_finds_any_slice_of_any_bank(shape: tuple[int, int, int], data: st.DataObject) -> None:
    def part(size: int) -> slice:
        start = data.draw(st.integers(0, size - 1))
        return slice(start, data.draw(st.integers(start + 1, size)), data.draw(st.integers(1, 3)))

    n, R, C = shape
    bank = torch.arange(n * R * C, dtype=torch.float32).view(shape)
    flat = data.draw(st.booleans())
    rows, cols, flip = part(n * R if flat else R), part(C), data.draw(st.booleans())
    k = data.draw(st.integers(0, n - 1))

    def pick(t: Tensor) -> Tensor:
        t = (t.view(n * R, C) if flat else t[k])[rows, cols]
        return t.T if flip else t

    rectangles = locate(Piece("bank", bank.shape, pick(torch.empty(shape, device="meta"))))
    if rectangles is not None:
        assert torch.equal(rebuilt(rectangles, {"bank": bank}), pick(bank))
    else:
        assert False, "not found"  # noqa: B011, PT015
