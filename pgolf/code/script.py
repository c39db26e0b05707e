"""A script as a submission ships it: minified, compressed, in a file that unpacks itself."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable

import brotli

from pgolf.common import extras
from pgolf.errors import DataError

_BROTLI_MODES = (brotli.MODE_GENERIC, brotli.MODE_TEXT, brotli.MODE_FONT)
_COMPRESSORS: dict[str, Callable[[bytes], list[bytes]]] = {
    "zlib": lambda raw: [zlib.compress(raw, 9)],
    "lzma": lambda raw: [lzma.compress(raw, lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)],
    "brotli": lambda raw: [brotli.compress(raw, mode, 11, window) for mode in _BROTLI_MODES for window in (16, 22)],
}
_ESCAPED = {0: b"\\0", 13: b"\\r", 39: b"\\'", 92: b"\\\\"}


def self_extracting(source: bytes, name: str = "script") -> bytes:
    """A Python file that runs `source`, minified and compressed by the codec that makes it smallest."""
    extras.need("python_minifier")
    import python_minifier

    try:
        # a name for each repeated literal makes the text shorter and its compressed form longer
        small: bytes = python_minifier.minify(source, filename=name, hoist_literals=False).encode()
    except (SyntaxError, ValueError) as error:
        raise DataError(f"{name}: not a Python script that can be minified ({error})") from None
    forms = [_wrapped(data, module) for module, compress in _COMPRESSORS.items() for data in compress(small)]
    return min(forms, key=len)


def smallest(raw: bytes, name: str) -> bytes:
    """The script as it is, or self-extracting where that is shorter."""
    return min(raw, self_extracting(raw, name), key=len)


def _wrapped(data: bytes, module: str) -> bytes:
    """Bytes stand in the source as Latin-1 characters of a string: far denser than base 85.

    In a string of three quotes neither line feeds nor most quotes need a backslash.
    """
    parts = []
    for i, byte in enumerate(data):
        after = data[i + 1 : i + 2]
        escaped = _ESCAPED.get(byte, bytes([byte]))
        if byte == 0 and after.isdigit():
            escaped = b"\\x00"  # "\\0" before a digit would read as another octal escape
        if byte == 39 and after not in {b"'", b""}:
            escaped = b"'"
        parts.append(escaped)
    start = f"#coding:l1\nimport {module};exec({module}.decompress('''".encode()
    return start + b"".join(parts) + b"'''.encode('l1')))"
