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

_BROTLI_MODES = (brotli.MODE_GENERIC, brotli.MODE_TEXT, brotli.MODE_FONT)
_COMPRESSORS: dict[str, Callable[[bytes], list[bytes]]] = {
    "zlib": lambda raw: [zlib.compress(raw, 9)],
    "lzma": lambda raw: [lzma.compress(raw, lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)],
    "brotli": lambda raw: [brotli.compress(raw, mode, 11, window) for mode in _BROTLI_MODES for window in (16, 22)],
}
_ESCAPED = {0: b"\\0", 13: b"\\r", 39: b"\\'", 92: b"\\\\"}


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
        # a name for each repeated literal makes the text shorter and its compressed form longer
        small: bytes = python_minifier.minify(source, filename=name, hoist_literals=False).encode()
    except (SyntaxError, ValueError) as error:
        raise DataError(f"{name}: not a Python script that can be minified ({error})") from None
    forms = [_wrapped(data, module) for module, compress in _COMPRESSORS.items() for data in compress(small)]
    return min(forms, key=len)


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
