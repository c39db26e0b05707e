from contextlib import suppress
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.errors import ArtifactError
from pgolf.packer import general
from pgolf.packer.general import CODECS, compress

FLOATS = np.random.default_rng(0).normal(size=2000).astype("<f4").tobytes()
SAMPLES = {"nothing": b"", "byte": b"a", "text": b"a rose is " * 300, "floats": FLOATS, "zeros": bytes(200_000)}


def decompress(stored):
    return general.decompress(*astuple(stored))


def test_codec_numbers_never_change():
    assert {name: codec.number for name, codec in CODECS.items()} == {
        "stored": 0, "brotli": 1, "lzma": 2, "zstd": 3, "zlib": 4,
    }  # fmt: skip


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("sample", SAMPLES)
def test_round_trip(codec, sample):
    raw = SAMPLES[sample]
    assert decompress(compress(raw, 4, (codec,))) == raw


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(general.SHUFFLES))
def test_round_trip_of_anything(raw, item):
    stored = compress(raw, item)
    assert decompress(stored) == raw
    assert len(stored.data) <= len(raw)


def test_shuffle_literal():
    assert general.shuffled(b"aAbBcC", 2) == b"abcABC"
    assert general.unshuffled(b"abcABC", 2) == b"aAbBcC"


def test_floats_are_shuffled_and_noise_is_stored():
    assert compress(FLOATS, 4).shuffle == 4
    assert compress(np.random.default_rng(1).bytes(500)).codec == CODECS["stored"].number


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("sample", ["text", "floats"])
def test_damage_never_passes_as_something_else(codec, sample):
    """Cut, lengthened, or with another size: refused. Flipped bits: refused or (within a codec's slack) the same size."""
    raw = SAMPLES[sample]
    good = compress(raw, 1, (codec,))
    for data in (good.data[:-1], good.data + b"x", b"", good.data + good.data):
        with pytest.raises(ArtifactError, match="section"):
            decompress(replace(good, data=data))
    for size in (len(raw) - 1, len(raw) + 1, 0):
        with pytest.raises(ArtifactError, match="section"):
            decompress(replace(good, size=size))
    rng = np.random.default_rng(0)
    for _ in range(50):
        data = bytearray(good.data)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        with suppress(ArtifactError):
            assert len(decompress(replace(good, data=bytes(data)))) == len(raw)


@pytest.mark.parametrize("codec", ["brotli", "lzma", "zstd", "zlib"])
def test_a_bomb_stops_at_the_declared_size(codec):
    bomb = compress(bytes(5_000_000), 1, (codec,))
    with pytest.raises(ArtifactError, match="section"):
        decompress(replace(bomb, size=1000))
