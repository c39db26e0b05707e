import lzma
import tracemalloc
from contextlib import suppress
from dataclasses import astuple, replace

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.errors import ArtifactError
from pgolf.packer.coder import general
from pgolf.packer.coder.general import CODECS, compress

FLOATS = np.random.default_rng(0).normal(size=2000).astype("<f4").tobytes()
SAMPLES = {"nothing": b"", "byte": b"a", "text": b"a rose is " * 300, "floats": FLOATS, "zeros": bytes(200_000)}


def decompress(stored):
    return general.decompress(*astuple(stored))


def test_codec_numbers_never_change():
    assert {name: codec.number for name, codec in CODECS.items()} == {
        "stored": 0, "brotli": 1, "lzma": 2, "zstd": 3, "zlib": 4,
    }  # fmt: skip
    assert general.SHUFFLES == (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("size", "dictionary"), [(0, 12), (2047, 12), (4095, 12), (4096, 13), (2**26 - 1, 26), (2**26, 26), (2**30, 26)]
)
def test_the_format_says_what_lzma_is(size, dictionary):
    """A writer with a larger dictionary than its reader would be found out by large sections only."""
    (filters,) = general._lzma_filters(size)
    format_says = {"id": lzma.FILTER_LZMA2, "lc": 3, "lp": 0, "pb": 0, "dict_size": 1 << dictionary}
    assert filters | format_says == filters


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
    assert compress(FLOATS).shuffle == 1
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


def test_a_zstd_frame_that_tells_its_size_is_not_believed():
    parameters = zstandard.ZstdCompressionParameters(format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=True)
    data = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(5_000_000))
    number = CODECS["zstd"].number
    assert general.decompress(data, number, 1, 5_000_000) == bytes(5_000_000)
    tracemalloc.start()
    for size in (0, 1000):
        with pytest.raises(ArtifactError, match="tells another size"):
            general.decompress(data, number, 1, size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(("window", "good"), [(17 << 3, True), (17 << 3 | 1, False), (18 << 3, False)])
def test_the_format_says_how_far_zstd_looks_back(window, good):
    """A frame by hand: no magic number, nothing in its descriptor, a window of 2^(10 + 17), the last block stored raw."""
    frame = bytes([0, window, 5 << 3 | 1, 0, 0]) + b"hello"
    number = CODECS["zstd"].number
    if good:
        assert general.decompress(frame, number, 1, 5) == b"hello"
    else:
        with pytest.raises(ArtifactError, match="zstd section does not decompress"):
            general.decompress(frame, number, 1, 5)


@pytest.mark.parametrize("codec", ["brotli", "lzma", "zstd", "zlib"])
def test_a_bomb_stops_at_the_declared_size(codec):
    bomb = compress(bytes(5_000_000), 1, (codec,))
    with pytest.raises(ArtifactError, match="section"):
        decompress(replace(bomb, size=1000))


def test_large_floats_are_compressed_in_no_time_and_no_worse(monkeypatch):
    raw = np.random.default_rng(0).normal(size=1 << 16).astype(np.float16).tobytes()
    slow = compress(raw, 2)
    monkeypatch.setattr(general, "LARGE", len(raw))
    monkeypatch.setitem(CODECS, "brotli", replace(CODECS["brotli"], encode=lambda _: pytest.fail("the slowest level")))
    quick = compress(raw, 2)
    assert len(quick.data) < 1.01 * len(slow.data)
    assert general.decompress(quick.data, quick.codec, quick.shuffle, quick.size) == raw
