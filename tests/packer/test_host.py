"""The compiled `Device` against numpy, which defines what it does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.packer.backends import rans_numba, registry
from pgolf.packer.backends.host import Host
from pgolf.packer.coder import stream
from pgolf.packer.coder.strips import from_strips, to_strips
from pgolf.packer.format import artifact
from pgolf.packer.plane import Plane
from tests.packer.test_stream import decoded, scalar, walked


def test_it_decodes_what_numpy_does():
    cases = [scalar(70, 30, 2.0), scalar(0, 5, 1.0), scalar(1500, 3, 300.0), walked(1100, 9, 8), scalar(5, 0, 1.0)]
    codes, layouts = zip(*cases, strict=True)
    codes[0][3, 3] = 100_000  # far off its class
    coded = stream.encode(codes, layouts, "x", 200, rans_numba)
    assert coded.sections["x.aside"]
    assert coded.sections["x.escapes"]
    plain, fast = decoded(coded, layouts), decoded(coded, layouts, device=Host())
    for numpy, host, code in zip(plain, fast, codes, strict=True):
        assert numpy.dtype == host.dtype
        assert (host == code).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([0, 1, 7, 1023, 1024, 1025, 2100]), st.integers(0, 19), st.sampled_from([np.int16, np.int32]))
def test_strips(rows, cols, dtype):
    matrix = np.random.default_rng(rows).integers(-9, 9, (rows, cols)).astype(dtype)
    back = Host().from_strips(to_strips(matrix), matrix.shape)
    assert back.dtype == dtype
    assert back.flags.c_contiguous
    assert (back == from_strips(to_strips(matrix), matrix.shape)).all()
    assert (back == matrix).all()


def test_checksums_agree_where_they_wrap_around():
    planes = [
        Plane(np.full((300, 200), -(2**31), np.int32)),
        Plane(np.zeros((0, 3), np.int32)),
        Plane(np.arange(50_000, dtype=np.int16).reshape(50, 1000)),
    ]
    assert Host().checksum(planes) == artifact.checksum(planes)
    assert Host().checksum([]) == artifact.checksum([]) == 0


@pytest.mark.parametrize(("wanted", "kind"), [("0", type(None)), ("1", Host)])
def test_it_can_be_switched_off(monkeypatch, wanted, kind):
    monkeypatch.setenv("PGOLF_COMPILED", wanted)
    assert type(registry.host()) is kind
    assert registry.loops() is (rans_numba if wanted == "1" else None)


def test_lanes_that_are_coded_a_few_at_a_time_are_the_same(monkeypatch):
    codes, layouts = zip(*[scalar(300, 40, 2.0), walked(1100, 9, 8)], strict=True)
    usual = stream.encode(codes, layouts, "x", 200, rans_numba)
    for group in (1, 3000):
        monkeypatch.setattr(rans_numba, "GROUP", group)
        assert stream.encode(codes, layouts, "x", 200, rans_numba).sections == usual.sections
