"""Integer arrays through `pgolf.packer.encode` and `decode`: nothing is lost, and nothing else is taken."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fuzz.mutate import with_header
from pgolf import packer
from pgolf.errors import ArtifactError, UsageError
from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import Entry
from pgolf.packer.plane import Plane, Scale

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_lossless_round_trip(data):
    arrays = {}
    for name in data.draw(st.lists(st.text(max_size=5), max_size=3, unique=True)):
        dtype = np.dtype(data.draw(st.sampled_from(INTEGERS)))
        info = np.iinfo(dtype)
        low, high = max(info.min, -(2**31)), min(info.max, 2**31 - 1)
        shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
        arrays[name] = data.draw(hnp.arrays(dtype, shape, elements=st.integers(low, high)))
    found = packer.decode(packer.encode(arrays))
    assert list(found) == sorted(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert (found[name] == array).all()


def test_lossless_takes_any_memory_layout():
    base = np.arange(-60, 60, dtype=">i4").reshape(4, 5, 6)
    found = packer.decode(packer.encode({"t": base.transpose(2, 0, 1), "s": base[::2, ::-1]}))
    assert (found["t"] == base.transpose(2, 0, 1)).all()
    assert (found["s"] == base[::2, ::-1]).all()


def test_lossless_refuses_what_it_would_change():
    with pytest.raises(UsageError, match="'w' has dtype float32"):
        packer.encode({"w": np.zeros(3, np.float32)})
    with pytest.raises(UsageError, match="'w' reaches from"):
        packer.encode({"w": np.array([2**31])})


@pytest.mark.parametrize("ends", [(-(2**31), 0), (0, 2**31 - 1), (-(2**31) - 1, 0), (0, 2**31)])
def test_lossless_takes_all_of_32_bits_and_no_more(ends):
    if min(ends) >= -(2**31) and max(ends) < 2**31:
        assert packer.decode(packer.encode({"w": np.array(ends)}))["w"].tolist() == list(ends)
    else:
        with pytest.raises(UsageError, match="'w' reaches from"):
            packer.encode({"w": np.array(ends)})


def test_weights_are_not_codes():
    plain, scale = np.ones((2, 2), np.int32), Scale(np.zeros(2, np.int32), 8)
    for dtype, planes in {
        "float32": [Plane(plain)], "int8": [Plane(plain, scale)], "int16": [Plane(plain, None, scale)],
        "int32": [Plane(plain)] * 2,
    }.items():  # fmt: skip
        entry = Entry(dtype, (2 * len(planes), 2), planes=tuple(planes))
        with pytest.raises(ArtifactError, match=r"'w' is not a plain integer array.*pgolf\.load"):
            packer.decode(artifact.encode({"w": entry}).data)


def test_a_dtype_too_narrow_for_its_codes_is_damage():
    for ends in ([-128, 127], [-129, 127], [-128, 128], [300, 1]):
        codes = packer.encode({"w": np.array([ends], np.int16)})
        narrow = with_header(codes, lambda head: head["tensors"][0].__setitem__(1, "int8"))
        if ends == [-128, 127]:
            assert packer.decode(narrow)["w"].tolist() == [ends]
        else:
            with pytest.raises(ArtifactError, match="do not fit"):
                packer.decode(narrow)
