"""A script as a submission ships it: minified, and compressed in a file that unpacks itself.

What is unpacked is a file beside the script, for Python and its tools read source: a script its own, inspect and TorchScript
a function's, Triton a kernel's, a traceback a line, and a spawned process the whole main module, all by the path in __file__.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable

import brotli

from pgolf.code.minify import minified
from pgolf.code.visible import Readers

_BROTLI_MODES = (brotli.MODE_GENERIC, brotli.MODE_TEXT, brotli.MODE_FONT)
_COMPRESSORS: dict[str, Callable[[bytes], list[bytes]]] = {
    "zlib": lambda raw: [zlib.compress(raw, 9)],
    "lzma": lambda raw: [lzma.compress(raw, lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)],
    "brotli": lambda raw: [brotli.compress(raw, mode, 11, window) for mode in _BROTLI_MODES for window in (16, 22)],
}
_ESCAPED = {0: b"\\0", 13: b"\\r", 39: b"\\'", 92: b"\\\\"}

# Before the source, compressed with it: `_` is both. The file is written under another name and renamed, so that no rank and
# no spawned process ever sees half of one, and used again where it is there. Where the folder cannot be written to, the file
# lies in a private one among links to everything that is beside the script, until the process ends.
_UNPACK = """\
_=_[%d:]
def _u():
 import os,tempfile as t,atexit,shutil
 d,n=os.path.split(os.path.abspath(__file__));n=n[:-3]+'_.py'
 def w(d):
  p=os.path.join(d,n)
  try:
   with open(p,'rb')as f:
    if f.read()==_:return p
  except OSError:0
  q=p+os.urandom(4).hex()
  with open(q,'wb')as f:f.write(_)
  os.replace(q,p);return p
 try:return w(d)
 except OSError:
  e=t.mkdtemp();atexit.register(shutil.rmtree,e,1)
  for x in os.listdir(d):os.symlink(os.path.join(d,x),os.path.join(e,x))
  return w(e)
__file__=_u()
exec(compile(_,__file__,'exec'))
"""


def unpacked_name(name: str) -> str:
    """What a self-extracting script calls the file that it unpacks: `train.py` -> `train_.py`."""
    return name.removesuffix(".py") + "_.py"


def self_extracting(source: bytes, name: str = "script", among: Readers | None = None) -> bytes:
    """A Python file that runs `source`, minified and compressed by the codec that makes it smallest; see `minified`."""
    return extracting(minified(source, name, among))


def extracting(source: bytes) -> bytes:
    """A Python file that unpacks `source` as it is and runs it."""
    start = unpacker()
    return min((_wrapped(data, module, len(start)) for module, data in compressed(start + source)), key=len)


def unpacker() -> bytes:
    """The code that is compressed with a source, before it."""
    size = len(_UNPACK % 100)  # three digits, whatever they are
    return (_UNPACK % size).encode()


def compressed(raw: bytes) -> list[tuple[str, bytes]]:
    """(module that decompresses, data) by every codec and mode."""
    return [(module, data) for module, compress in _COMPRESSORS.items() for data in compress(raw)]


def _wrapped(data: bytes, module: str, start: int) -> bytes:
    """start: length of the unpacker, which is run on what follows it."""
    head = f"#coding:l1\nimport {module};exec((_:={module}.decompress(".encode()
    return head + literal(data) + f"))[:{start}])".encode()


def literal(data: bytes) -> bytes:
    """Bytes as an expression in a file of Latin-1, as characters of a string: far denser than base 85.

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
    return b"'''" + b"".join(parts) + b"'''.encode('l1')"
