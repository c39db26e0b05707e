"""How many bytes a script counts for in a submission: minified, compressed, in a file that unpacks itself.

The contest counts the bytes of the files as they lie in the submission folder. `self_extracting` makes the file that
`pgolf export` writes, so the count is the length of something that exists.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

import brotli

from pgolf.errors import DataError, UsageError

_UNPACKERS: dict[str, tuple[Callable[[bytes], bytes], bytes]] = {
    "zlib": (lambda raw: zlib.compress(raw, 9), b"import zlib;exec(zlib.decompress(D))"),
    "lzma": (
        lambda raw: lzma.compress(raw, lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME),
        b"import lzma;exec(lzma.decompress(D))",
    ),
    "brotli": (lambda raw: brotli.compress(raw, quality=11), b"import brotli;exec(brotli.decompress(D))"),
}
_ESCAPED = {0: b"\\0", 10: b"\\n", 13: b"\\r", 39: b"\\'", 92: b"\\\\"}


def counted_bytes(path: str | Path) -> int:
    """Bytes that a file counts for: a Python script as its self-extracting form if that is smaller, others as they are.

    Raises UsageError if there is no such file, DataError if a script does not parse.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"--code {path}: no such file")
    raw = path.read_bytes()
    return min(len(raw), len(self_extracting(raw, str(path)))) if path.suffix == ".py" else len(raw)


def self_extracting(source: bytes, name: str = "script") -> bytes:
    """A Python file that runs `source`, minified and compressed by the codec that makes it smallest."""
    import python_minifier

    try:
        small: bytes = python_minifier.minify(source, filename=name).encode()
    except (SyntaxError, ValueError) as error:
        raise DataError(f"{name}: not a Python script that can be minified ({error})") from None
    return min((_wrapped(compress(small), unpack) for compress, unpack in _UNPACKERS.values()), key=len)


def _wrapped(data: bytes, unpack: bytes) -> bytes:
    """Bytes stand in the source as Latin-1 characters of a string: far denser than base 85."""
    parts = []
    for i, byte in enumerate(data):
        escaped = _ESCAPED.get(byte, bytes([byte]))
        if byte == 0 and data[i + 1 : i + 2].isdigit():
            escaped = b"\\x00"  # "\\0" before a digit would read as another octal escape
        parts.append(escaped)
    return b"#coding:latin1\nD='" + b"".join(parts) + b"'.encode('latin1')\n" + unpack
