"""General codecs for everything that is not a code plane: the smallest of several wins, by size alone."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import brotli
import numpy as np
import zstandard

from pgolf.errors import ArtifactError

Data = bytes | memoryview


def _lzma_filters(size: int) -> list[dict[str, int]]:
    """The reader sets up a dictionary this large, so it follows from the raw size and never exceeds 64 MiB."""
    dictionary = min(max(1 << 12, 1 << size.bit_length()), 1 << 26)
    preset = 9 | lzma.PRESET_EXTREME
    return [{"id": lzma.FILTER_LZMA2, "preset": preset, "lc": 3, "lp": 0, "pb": 0, "dict_size": dictionary}]


def _lzma_encode(raw: bytes) -> bytes:
    return lzma.compress(raw, lzma.FORMAT_RAW, filters=_lzma_filters(len(raw)))


def _lzma_decode(data: Data, size: int) -> bytes:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_lzma_filters(size))
    raw = decoder.decompress(data, size + 1)
    return _whole(raw, decoder.eof and not decoder.unused_data)


def _brotli_decode(data: Data, size: int) -> bytes:
    decoder, raw = brotli.Decompressor(), b""
    while not decoder.is_finished() and len(raw) <= size:
        piece = decoder.process(data, output_buffer_limit=size + 1 - len(raw))
        if not piece and not data:
            break
        raw, data = raw + piece, b""
    return _whole(raw, decoder.is_finished())


def _zstd_encode(raw: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        22, write_content_size=False, write_checksum=False, format=zstandard.FORMAT_ZSTD1_MAGICLESS
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(raw)


def _zstd_decode(data: Data, size: int) -> bytes:
    # A frame that tells its size makes the library allocate that, whatever max_output_size says.
    told = zstandard.get_frame_parameters(data, format=zstandard.FORMAT_ZSTD1_MAGICLESS).content_size
    if told not in {size, zstandard.CONTENTSIZE_UNKNOWN}:
        raise ValueError("it tells another size")
    decoder = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS, max_window_size=1 << 27)
    return decoder.decompress(data, max_output_size=max(size, 1), allow_extra_data=False)


def _zlib_decode(data: Data, size: int) -> bytes:
    decoder = zlib.decompressobj()
    raw = decoder.decompress(data, size + 1)
    return _whole(raw, decoder.eof and not decoder.unused_data)


def _whole(raw: bytes, ended: bool) -> bytes:
    if not ended:
        raise ValueError("it does not end where it must")
    return raw


@dataclass(frozen=True)
class Codec:
    """encode(raw) -> stored; decode(stored, raw size) -> raw, never more than one byte longer than the size."""

    number: int  # on disk: never reuse
    encode: Callable[[bytes], bytes]
    decode: Callable[[Data, int], bytes]


CODECS = {
    "stored": Codec(0, lambda raw: raw, lambda data, _: bytes(data)),
    "brotli": Codec(1, lambda raw: brotli.compress(raw, quality=11, lgwin=24), _brotli_decode),
    "lzma": Codec(2, _lzma_encode, _lzma_decode),
    "zstd": Codec(3, _zstd_encode, _zstd_decode),
    "zlib": Codec(4, lambda raw: zlib.compress(raw, 9), _zlib_decode),
}
BY_NUMBER = {codec.number: name for name, codec in CODECS.items()}
_FAILURES = (brotli.error, lzma.LZMAError, zstandard.ZstdError, zlib.error, ValueError, MemoryError)
SHUFFLES = (1, 2, 4, 8)  # item sizes
# From 4 MiB on brotli's slowest level takes minutes, and what it finds in floats is within 1.5% of what middle ones do.
LARGE = 1 << 22
MIDDLE = (7, 5)
BLOCK_HEAD = 3  # bytes of zstd
WINDOW, ZLIB_WINDOW = 24, 15  # bits of how far back codecs look for what they saw before
BEST = ("stored", "brotli")  # what a submission's decoder needs no further library for; the others save next to nothing


@dataclass(frozen=True)
class Compressed:
    """data: stored bytes; codec: number; shuffle: item size in bytes that was shuffled by, 1 = not at all; size: raw."""

    data: bytes
    codec: int
    shuffle: int
    size: int


def shuffled(raw: bytes, item: int) -> bytes:
    """Byte 0 of every `item`-byte number, then byte 1, ...; the length must be a multiple of item."""
    return np.frombuffer(raw, np.uint8).reshape(-1, item).T.tobytes()


def unshuffled(raw: bytes, item: int) -> bytes:
    """The inverse of `shuffled`."""
    return np.frombuffer(raw, np.uint8).reshape(item, -1).T.tobytes()


def compress(raw: bytes, item: int = 1, codecs: tuple[str, ...] = BEST) -> Compressed:
    """The smallest stored form of `raw` among codecs, plain and (for item > 1) shuffled; first wins a tie.

    item: bytes of a number; codecs find more in a run of exponents than in whole floats. On 4 MB of normal float16 brotli
    at level 11 took 12.6 s to leave 86.4%, at levels 7 and 5 a tenth of a second to leave 85.0%: large data are spared it.
    """
    forms = [(raw, 1)] + ([(shuffled(raw, item), item)] if item > 1 and len(raw) % item == 0 else [])
    quick = codecs == BEST and len(raw) >= LARGE
    tried = [
        Compressed(data, CODECS[c].number, step, len(raw))
        for form, step in forms
        for c in codecs
        for data in (_middling(form) if quick and c == "brotli" else [CODECS[c].encode(form)])
    ]
    return min(tried, key=lambda c: len(c.data))


def _middling(raw: bytes) -> list[bytes]:
    return [brotli.compress(raw, quality=level, lgwin=24) for level in MIDDLE]


def shares(pieces: Sequence[bytes], stored: int, codec: int = 1, shuffle: int = 1) -> list[float]:
    """What each of the pieces that one section joins adds to those before it, in bytes; together `stored`, its length.

    The first of equal pieces pays for all of them and the others next to nothing, as in the section itself. The codecs of
    the file do not say what they spend where, and every beginning of a section compressed once more would take hours:
    quick zstd goes over the pieces once, with the codec's window, and its figures are scaled to the length.
    codec, shuffle: of the section; where it is stored as it is, every piece has its own length.
    """
    forms = [shuffled(piece, shuffle) for piece in pieces]
    spent = [float(len(form)) for form in forms] if BY_NUMBER[codec] == "stored" else _spent(forms, codec)
    total = sum(spent)
    return [stored * each / total for each in spent] if total else [0.0] * len(spent)


def _spent(pieces: Sequence[bytes], codec: int) -> list[float]:
    """Bytes of quick zstd for each of the pieces, one after another, the head of its block aside; none for an empty one."""
    window = ZLIB_WINDOW if BY_NUMBER[codec] == "zlib" else WINDOW
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3, window_log=window, enable_ldm=True, write_content_size=False, format=zstandard.FORMAT_ZSTD1_MAGICLESS
    )
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    written = [stream.compress(piece) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for piece in pieces]
    return [float(max(len(data) - BLOCK_HEAD, 0)) for data in written]


def decompress(data: Data, codec: int, shuffle: int, size: int) -> bytes:
    """The raw bytes. Raises ArtifactError if the data are damaged or do not have exactly the declared size."""
    return unshuffled(_decoded(data, codec, shuffle, size), shuffle)


def _decoded(data: Data, codec: int, shuffle: int, size: int) -> bytes:
    name = BY_NUMBER[codec]
    try:
        raw = CODECS[name].decode(data, size)
    except _FAILURES as error:
        raise ArtifactError(f"a {name} section does not decompress ({error}): the artifact is damaged") from None
    if len(raw) != size or size % shuffle:
        raise ArtifactError(f"a {name} section has the wrong size: the artifact is damaged")
    return raw
