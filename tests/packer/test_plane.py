import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.packer.plane import HALF, Plane, Scale, mantissa_integers


def test_mantissas_literal():
    assert mantissa_integers(1) == (8388608,)
    assert mantissa_integers(4) == (8388608, 9975792, 11863283, 14107901)


@pytest.mark.parametrize("per_octave", [1, 2, 4, 8, 16, 32, 64])
def test_mantissas_are_the_rounded_powers(per_octave):
    exact = [2.0**23 * 2.0 ** (k / per_octave) for k in range(per_octave)]
    assert all(abs(m - e) <= 0.5 + 1e-6 for m, e in zip(mantissa_integers(per_octave), exact, strict=True))


def test_values_literal():
    """Bit patterns: a scale must be the same float on every machine."""
    values = Scale(np.array([-9, -8, 0, 1, 7, 8, 1016, -1008], np.int32), 8).values()
    assert values.dtype == np.float32
    bits = [0x3EEAC0C7, 0x3F000000, 0x3F800000, 0x3F8B95C2, 0x3FEAC0C7, 0x40000000, 0x7F000000, 0x00800000]
    assert values.view(np.uint32).tolist() == bits


def test_half_values_literal():
    values = Scale(np.array([0x3C00, 0x3555, 0x0001, 0x7BFF], np.int32), HALF).values()
    assert values.tolist() == [1.0, 0.333251953125, 2.0**-24, 65504.0]


@given(st.lists(st.floats(2.0**-126, 2.0**127), min_size=1, max_size=20), st.sampled_from([1, 2, 4, 8, 16, 32, 64]))
def test_nearest_is_within_half_a_step(values, per_octave):
    decoded = Scale.nearest(np.array(values), per_octave).values().astype(np.float64)
    assert (np.abs(np.log2(decoded / np.array(values))) <= 0.5 / per_octave + 1e-6).all()


@pytest.mark.parametrize("per_octave", [1, 8, 64])
def test_nearest_stays_within_normal_float32(per_octave):
    values = Scale.nearest(np.array([0.0, 1e-45, 3.4e38, 1e300]), per_octave).values()
    assert values.tolist() == [2.0**-126, 2.0**-126, 2.0**127, 2.0**127]


def test_nearest_half_is_numpys():
    values = np.array([1e-9, 0.1, 3.14159, 1e9])
    assert Scale.nearest(values, HALF).values().tolist() == [2.0**-24, *np.float16([0.1, 3.14159, 65504]).tolist()]


def test_reconstruction_is_code_times_row_times_column():
    codes = np.array([[1, -2, 0], [3, 40, -500]], np.int32)
    row, col = Scale(np.array([1, -5], np.int32), 4), Scale(np.array([0, 3, 9], np.int32), 8)
    out = Plane(codes, row, col).reconstruct()
    expected = (codes.astype(np.float32) * row.values()[:, None]) * col.values()
    assert out.dtype == np.float32
    assert out.tolist() == expected.tolist()
    assert Plane(codes).reconstruct().tolist() == codes.tolist()


def test_a_plane_is_scalar_unless_it_says_otherwise():
    plane = Plane(np.zeros((1, 1), np.int32))
    assert (plane.trellis, plane.trellis_from) == (0, 0)
