from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from pgolf.kernels import packed, quant_linear
from pgolf.kernels.packed import Packed, pack, unpack
from pgolf.kernels.weight import PackedWeight
from tests.helpers import generator
from tests.kernels.places import everywhere, on_gpu, poison

# Relative error of whole results against float64. float16 and bfloat16: x, code · column scale and y are rounded once each,
# to 11 and 8 bits; float32: sums of a few hundred products.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def case(bits, rows, cols, device="cpu", seed=0, scales=True) -> tuple[torch.Tensor, Packed]:
    """Codes that need all of `bits`, and the matrix packed from them."""
    g, half = generator(seed), 1 << (bits - 1)
    codes = torch.randint(-half, half, (rows, cols), generator=g)
    codes[0, 0] = -half
    row, col = torch.rand(rows, generator=g) * 1e-2, torch.rand(cols, generator=g) * 3e-3 + 1e-4
    return codes, pack(codes.to(device), *((row.to(device), col.to(device)) if scales else (None, None)))


def error(y, x, weight):
    exact = x.double() @ packed.dense_reference(weight, torch.float32).double().T
    return ((y.double() - exact).norm() / exact.norm()).item()


@given(st.sampled_from(packed.WIDTHS), st.integers(1, 9), st.integers(1, 700), st.integers(0, 99))
@settings(max_examples=30)
def test_unpack_is_the_inverse_of_pack(bits, rows, cols, seed):
    codes, weight = case(bits, rows, cols, seed=seed)
    assert weight.bits == bits
    assert torch.equal(unpack(weight).long(), codes)
    index = torch.tensor([rows - 1, 0])
    assert torch.equal(unpack(weight.rows(index)).long(), codes[index])


def test_the_layout_by_hand():
    """Sixteen words of eight fields: code 16f + j is field f of word j."""
    codes = torch.zeros(1, 128, dtype=torch.int64)
    codes[0, 0], codes[0, 16], codes[0, 127] = 7, -8, 1
    weight = pack(codes, None, None)
    assert weight.low[0, 0].item() & 0xFF == 0x0F
    assert weight.low[0, 15].item() & 0xFFFFFFFF == 0x98888888
    assert weight.low[0, 5].item() & 0xFFFFFFFF == 0x88888888
    codes[0, 16] = -32
    weight = pack(codes, None, None)
    assert weight.bits == 6
    assert (weight.high[0, 0].item() >> packed.high_shift(6, 1)) & 3 == 0
    assert (weight.high[0, 0].item() >> packed.high_shift(6, 0)) & 3 == 2


@pytest.mark.parametrize("bits", packed.WIDTHS)
def test_high_bits_do_not_overlap(bits):
    taken = [packed.high_shift(bits, k) + b for k in range(packed.FIELDS) for b in range(bits - packed.LOW)]
    assert sorted(taken) == list(range(len(taken)))


def test_bytes_of_a_matrix():
    for bits in packed.WIDTHS:
        assert case(bits, 32, 512, scales=False)[1].num_bytes == 32 * 512 * bits // 8


def test_wide_codes_are_refused():
    with pytest.raises(ValueError, match="more bits"):
        pack(torch.tensor([[128]]), None, None)
    assert packed.width_of(-128, 127) == 8
    assert packed.width_of(-129, 0) is None


@everywhere
@pytest.mark.parametrize("bits", packed.WIDTHS)
def test_unpacked_weights_are_dequantized_codes(device, bits):
    for rows, cols, scales in ((17, 140, True), (1, 7, False)):
        codes, weight = case(bits, rows, cols, device, scales=scales)
        poison(device)
        for dtype in (torch.bfloat16, torch.float32):
            assert torch.equal(packed.launch_unpack(weight, dtype), packed.dense_reference(weight, dtype))
        if not scales:
            assert torch.equal(packed.launch_unpack(weight, torch.float32).cpu(), codes.float())


@everywhere
@pytest.mark.parametrize("bits", packed.WIDTHS)
def test_product_against_float64(device, bits):
    for rows, cols, inputs, scales, dtype in (
        (5, 7, 1, False, torch.float16), (19, 130, 17, True, torch.float16), (20, 260, 3, True, torch.float32),
    ):  # fmt: skip
        _, weight = case(bits, rows, cols, device, scales=scales)
        x = torch.randn(inputs, cols, generator=generator(bits)).to(device, dtype)
        poison(device)
        y = quant_linear.launch_quant_linear(x, weight)
        assert y.dtype == dtype
        assert error(y, x, weight) < TOLERANCE[dtype]


@everywhere
@pytest.mark.parametrize("split", [2, 3, 4])
def test_rows_split_among_programs(device, split, monkeypatch):
    """In one launch, whose last program adds the parts; it leaves its counters ready for the next."""
    shape = quant_linear.LaunchShape(16, 16, split, 1, 3)
    monkeypatch.setattr(quant_linear, "launch_shape", lambda *_: shape)
    counters = torch.zeros(64, dtype=torch.int32, device=device)
    monkeypatch.setattr(quant_linear, "counters", lambda *_: counters)
    _, weight = case(6, 20, 500, device)
    x = torch.randn(2, 500, generator=generator(0)).to(device)
    for _ in range(2):
        poison(device)
        assert error(quant_linear.launch_quant_linear(x, weight), x, weight) < TOLERANCE[torch.float32]
        assert not counters.any()


@everywhere
def test_rows_of_x_with_gaps_between_them(device):
    _, weight = case(4, 18, 130, device)
    wide = torch.randn(5, 300, generator=generator(0)).to(device)
    for x in (wide[:, 17:147], wide[::2, :130], torch.randn(130, 3, generator=generator(1)).to(device).T):
        assert error(quant_linear.launch_quant_linear(x, weight), x, weight) < TOLERANCE[torch.float32]


SHAPES = st.tuples(st.integers(1, 64), st.integers(1, 20000), st.integers(1, 64))


@given(SHAPES, st.sampled_from(packed.WIDTHS), st.integers(1, 200))
def test_launch_shapes_cover_everything(shape, bits, processors):
    inputs, outputs, units = shape
    how = quant_linear.launch_shape(inputs, outputs, units, bits, processors)
    steps = -(-units // how.split)
    assert (how.split - 1) * steps < units <= how.split * steps, "a program without units"
    assert how.block_m >= inputs
    assert (how.block_n, how.warps) in {(16, how.block_m // 16), (64, 4)}


@pytest.mark.parametrize("inputs", [1, 4, 16, 64])
@pytest.mark.parametrize(("rows", "cols"), [(512, 512), (2048, 512), (512, 2048), (8192, 8192), (8192, 512)])
def test_an_h100_is_full(rows, cols, inputs):
    """At least 120 of its 132 processors have a program; large matrices give each two."""
    units = cols // (packed.FIELDS * packed.unit_words(cols))
    how = quant_linear.launch_shape(inputs, rows, units, 4, 132)
    programs = -(-rows // how.block_n) * how.split
    assert programs >= (240 if rows * cols >= 1 << 22 else 120)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_reference_and_its_gradient(dtype):
    _, weight = case(5, 12, 40)
    x = torch.randn(2, 3, 40, generator=generator(1)).to(dtype).requires_grad_()
    y = quant_linear.quant_linear(x, weight)
    assert y.shape == (2, 3, 12)
    assert error(y.detach(), x.detach(), weight) < TOLERANCE[dtype]
    (gradient,) = torch.autograd.grad(y.float().sum(), x)
    exact = packed.dense_reference(weight, torch.float32).double().sum(0).expand(2, 3, -1)
    assert ((gradient.double() - exact).norm() / exact.norm()).item() < TOLERANCE[dtype]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own, in torch 2.15
def test_the_operation_is_well_made():
    _, w = case(6, 12, 40)
    x = torch.randn(3, 40, generator=generator(1), requires_grad=True)
    torch.library.opcheck(quant_linear._operation, (x, w.low, w.high, w.row_scale, w.col_scale, w.bits, w.cols))


def test_what_is_traced_for_a_gpu_launches_nothing():
    """Tensors without memory, as torch.compile has them: a kernel would ask where theirs is."""
    with FakeTensorMode():
        low, high = (torch.empty(20, 16, dtype=kind, device="cuda") for kind in (torch.int32, torch.int16))
        parts = low, high, torch.empty(20, device="cuda"), torch.empty(128, device="cuda")
        weight = PackedWeight(parts, 6, 128, torch.bfloat16)
        x, ids = (
            torch.empty(3, 128, device="cuda", dtype=torch.bfloat16),
            torch.empty(7, dtype=torch.int64, device="cuda"),
        )
        products = F.linear(x, weight), F.embedding(ids, weight), weight.dense(), weight + 1
    assert [tuple(y.shape) for y in products] == [(3, 20), (7, 128), (20, 128), (20, 128)]
    assert {(y.dtype, y.device.type) for y in products} == {(torch.bfloat16, "cuda")}


def test_unpacking_is_a_well_made_operation():
    _, w = case(6, 12, 40)
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(packed._operation, (w.low, w.high, w.row_scale, w.col_scale, w.bits, w.cols, dtype))


def test_torch_compile_takes_it_as_one_operation():
    _, weight = case(6, 12, 40)
    x = torch.randn(3, 40, generator=generator(1))
    whole = torch.compile(lambda x: quant_linear.quant_linear(x, weight) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(whole(x), quant_linear.quant_linear(x, weight) + 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, w: (x[:, :39], w), "x has 39 columns, the weight 40"),
        (lambda x, w: (x.int(), w), "x is int32, not float32"),
        (lambda x, w: (x.double(), w), "x is float64, not float32"),
        (lambda x, w: (x, replace(w, bits=5)), "high is int16, not int8"),
        (lambda x, w: (x, replace(w, high=None)), "high is missing with 6 bits a code"),
        (lambda x, w: (x, replace(w, low=w.low[:, :8])), r"low has shape \[12, 8\]"),
        (lambda x, w: (x, replace(w, row_scale=w.row_scale[:3])), r"row_scale has shape \[3\], not \[12\]"),
    ],
)
def test_operands_of_another_kind_are_named(change, said):
    _, weight = case(6, 12, 40)
    with pytest.raises(ValueError, match=said):
        quant_linear.quant_linear(*change(torch.randn(3, 40), weight))


class TestOnTheGpu:
    pytestmark = on_gpu

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("inputs", [1, 16, 17, 64, 65])
    @pytest.mark.parametrize("bits", packed.WIDTHS)
    def test_real_shapes(self, bits, inputs, dtype):
        for rows, cols in (
            ((512, 512), (512, 2048), (8192, 512), (1000, 4100)) if dtype == torch.bfloat16 else ((512, 512),)
        ):
            _, weight = case(bits, rows, cols, "cuda", seed=inputs)
            x = torch.randn(inputs, cols, device="cuda", dtype=dtype)
            poison("cuda")
            assert error(quant_linear.quant_linear(x, weight), x, weight) < TOLERANCE[dtype]

    def test_compiled_and_backward(self):
        _, weight = case(6, 512, 512, "cuda")
        x = torch.randn(4, 512, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        y = torch.compile(lambda x: quant_linear.quant_linear(x, weight).square().sum(), fullgraph=True)(x)
        (gradient,) = torch.autograd.grad(y, x)
        dense = packed.dense_reference(weight, torch.bfloat16)
        (expected,) = torch.autograd.grad((x @ dense.T).square().sum(), x)
        assert ((gradient - expected).norm() / expected.norm()).item() < 3 * TOLERANCE[torch.bfloat16]
