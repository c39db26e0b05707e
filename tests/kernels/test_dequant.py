import numpy as np
import pytest
import torch

from pgolf.kernels.dequant import dequant, dequant_reference, launch_dequant
from pgolf.packer.plane import Plane, Scale
from tests.helpers import generator
from tests.kernels.places import everywhere, needs_triton

SHAPES = [(1, 1), (5, 7), (130, 33), (1, 300)]


def scales(rows, cols, device, seed=0):
    g = generator(seed)
    return torch.rand(rows, generator=g).to(device) * 1e-3, torch.rand(cols, generator=g).to(device) + 0.5


@everywhere
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_bits_of_torch(device, shape, turned):
    rows, cols = shape
    row, col = scales(rows, cols, device)
    for kind, dtype, some_row, some_col in (
        (torch.int8, torch.bfloat16, row, col),
        (torch.int16, torch.bfloat16, row, None),
        (torch.int32, torch.float32, None, col),
        (torch.int16, torch.float16, None, None),
    ):
        codes = torch.randint(-100, 100, (cols, rows) if turned else shape, generator=generator(1)).to(device, kind)
        codes = codes.T if turned else codes
        out = torch.full(shape, float("nan"), dtype=dtype, device=device)
        launch_dequant(codes, some_row, some_col, out)
        assert torch.equal(out, dequant_reference(codes, some_row, some_col, dtype))


@everywhere
@pytest.mark.filterwarnings("ignore:invalid value")  # 0 · ∞, in the interpreter's numpy
def test_rounding_is_to_nearest_even(device):
    """Products that lie between two bfloat16, on both sides of the middle and on it, and beyond the largest one."""
    bits = torch.tensor([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7FFFFF, 0x7F800000], dtype=torch.int32)
    scale = bits.view(torch.float32).to(device)
    codes = torch.ones(1, len(bits), dtype=torch.int8, device=device)
    out = torch.empty(1, len(bits), dtype=torch.bfloat16, device=device)
    assert torch.equal(launch_dequant(codes, None, scale, out)[0], scale.bfloat16())
    nothing = launch_dequant(codes * 0, None, scale, out)[0]
    assert nothing[-1].isnan()
    assert (nothing[:-1] == 0).all()


def test_the_reference_is_the_reconstruction_rule():
    rng = np.random.default_rng(0)
    codes = rng.integers(-40, 40, (9, 6)).astype(np.int16)
    plane = Plane(
        codes, Scale(rng.integers(-99, 9, 9).astype(np.int32), 8), Scale(rng.integers(-9, 9, 6).astype(np.int32), 4)
    )
    row, col = (torch.from_numpy(s.values()) for s in (plane.row_scale, plane.col_scale))
    assert torch.equal(dequant(torch.from_numpy(codes), row, col, torch.float32), torch.from_numpy(plane.reconstruct()))


@needs_triton
def test_no_codes_no_program():
    for shape in ((0, 4), (4, 0)):
        assert launch_dequant(torch.zeros(shape, dtype=torch.int8), None, None, torch.empty(shape)).shape == shape


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c, r, k: (c.float(), r, k), "codes is float32, not int8 or int16 or int32"),
        (lambda c, r, k: (c, r[:4], k), r"row_scale has shape \[4\], not \[5\]"),
        (lambda c, r, k: (c, r, k.double()), "col_scale is float64, not float32"),
        (lambda c, r, k: (c, r, k.repeat(2)[::2]), r"col_scale has strides \(2,\): make it contiguous"),
        (lambda c, r, k: (c, r.to("meta"), k), "row_scale lies on meta, the rest on cpu"),
    ],
)
def test_operands_of_another_kind_are_named(change, said):
    with pytest.raises(ValueError, match=said):
        dequant(*change(torch.zeros(5, 7, dtype=torch.int8), *scales(5, 7, "cpu")))


def test_the_result_goes_where_it_fits():
    codes = torch.zeros(5, 7, dtype=torch.int8)
    for out, said in ((torch.empty(7, 5), "shape"), (torch.empty(7, 5).T, "strides"), (codes.clone(), "out is int8")):
        with pytest.raises(ValueError, match=said):
            dequant(codes, None, None, out=out)
