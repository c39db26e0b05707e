"""Bytes by content: what the rows of a report say, held against files packed with and without a tensor."""

import numpy as np
import pytest

from pgolf.packer.format import artifact, shares
from pgolf.packer.format.artifact import Entry
from pgolf.packer.plane import Plane

RNG = np.random.default_rng(5)


def raw(array, dtype, **more):
    return Entry(dtype, array.shape, raw=array.tobytes(), **more)


def shares_of(entries, coder="rans", meta=None):
    encoded = artifact.encode(entries, meta, coder)
    return shares.of(encoded.data, entries, encoded.tensor_bits), len(encoded.data)


def size_without(entries, names, coder="rans"):
    return len(artifact.encode({n: e for n, e in entries.items() if n not in names}, None, coder).data)


def a_model():
    """Noise that a coder cannot shrink, masks that it can, codes, vectors, an alias, nothing."""
    triangle = np.tril(np.ones((300, 300), bool))
    entries = {f"blocks.{i}.mask": raw(triangle, "bool") for i in range(24)}
    entries |= {f"blocks.{i}.gain": raw(np.ones(48, np.float32), "float32") for i in range(24)}
    entries["a.noise"] = raw(RNG.standard_normal(4000).astype(np.float32), "float32")
    entries["z.bytes"] = raw(RNG.integers(0, 256, 3000).astype(np.uint8), "uint8")
    codes = np.rint(RNG.normal(0, 3, (160, 96))).astype(np.int32)
    entries["codes"] = Entry("float32", (160, 96), planes=(Plane(codes),))
    entries["empty"] = Entry("int16", (0,), raw=b"")
    entries["tied"] = Entry("float32", (160, 96), alias="codes")
    return entries


@pytest.mark.parametrize("coder", ["rans", "brotli", "zlib", "lzma", "zstd"])
def test_the_rows_add_up_to_the_file_and_are_what_each_kind_adds(coder):
    entries = a_model()
    held, size = shares_of(entries, coder)
    assert set(held.tensors) == set(entries)
    assert sum(held.tensors.values()) + held.shared == pytest.approx(size)
    assert 28 < held.shared < 250
    for kind in ("mask", "gain", "a.noise", "z.bytes", "codes"):
        names = {name for name in entries if kind in name or (kind == "codes" and name == "tied")}
        told, true = sum(held.tensors[n] for n in names), size - size_without(entries, names, coder)
        assert told == pytest.approx(true, rel=0.03, abs=320), kind


def test_the_first_of_equal_tensors_pays_for_all():
    held, _ = shares_of(a_model())
    masks = sorted((held.tensors[f"blocks.{i}.mask"] for i in range(24)), reverse=True)
    assert masks[0] == held.tensors["blocks.0.mask"]
    assert masks[1] < 0.15 * masks[0]
    assert masks[1] < 30


def test_equal_codes_far_apart_are_equal_only_within_the_coders_window():
    """zlib looks back 32 kB, brotli 16 MB."""
    codes = RNG.integers(-60, 60, (300, 200)).astype(np.int32)
    entries = {name: Entry("float32", (300, 200), planes=(Plane(codes),)) for name in "ab"}
    for coder, low, high in (("zlib", 0.8, 1.2), ("brotli", 0, 0.02)):
        held, _ = shares_of(entries, coder)
        assert low <= held.tensors["b"] / held.tensors["a"] <= high, coder


def test_what_is_stored_as_it_is_has_its_own_length():
    entries = {"a": raw(RNG.integers(0, 256, 400).astype(np.uint8), "uint8")}
    entries |= {"b": raw(RNG.integers(0, 256, 100).astype(np.uint8), "uint8")}
    held, _ = shares_of(entries)
    described = [held.tensors["a"] - 400, held.tensors["b"] - 100]
    assert 0 < min(described) <= max(described) < 80


def test_a_name_costs_what_it_takes_in_the_header():
    long = "".join(map(chr, RNG.integers(97, 123, 300)))
    entries = {name: raw(np.zeros(1, np.uint8), "uint8") for name in ("a", "b", long)}
    held, _ = shares_of(entries, meta={"config": {"text": "".join(map(chr, RNG.integers(97, 123, 500)))}})
    assert 120 < held.tensors[long] < 300
    assert held.tensors["b"] < 20
    assert held.shared > 250


def test_nothing_is_counted_for_an_empty_artifact():
    held, size = shares_of({})
    assert held.tensors == {}
    assert held.shared == size
