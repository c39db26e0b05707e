"""Scripts that unpack themselves: the source inside is read by evaluating what they pass to `exec`, without running anything.

Known are constants, their joining, slices, and the decoders and decompressors of the standard library and brotli. A script
whose payload is made otherwise is not recognised, and taken as it is.
"""

from __future__ import annotations

import ast
import base64
import bz2
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import Any

import brotli

from pgolf.code.script import unpacker
from pgolf.code.uses import imported

LARGEST = 1 << 26  # bytes of source: no script has more, and a few bytes can be told to become terabytes
DEPTH = 4  # wrappers inside of wrappers


def inner(raw: bytes, name: str = "script") -> bytes | None:
    """The source that a self-extracting script runs; None for any other script, and for what is no Python."""
    found = None
    for _ in range(DEPTH):
        try:
            tree = ast.parse(raw if found is None else found, name)
        except (SyntaxError, ValueError):
            break
        inside = _payload(tree)
        if inside is None:
            break
        found = inside
    return found


def _payload(tree: ast.Module) -> bytes | None:
    """What `exec` is given in a module that does nothing else: imports and assigns, and then runs what it unpacked."""
    names = _Names(tree)
    for statement in tree.body:
        if not isinstance(statement, ast.Import | ast.ImportFrom | ast.Assign | ast.Expr) or _others(statement):
            return None
        call = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "exec" and call.args:
            try:
                made = names.value(call.args[0])
            except _UNKNOWN:
                continue
            source = made.encode() if isinstance(made, str) else made
            if isinstance(source, bytes):
                return source
    return None


def _others(statement: ast.stmt) -> bool:
    """Whether a statement imports what no unpacking needs."""
    return bool(
        {name.split(".")[0] for name in imported(statement)} - sys.stdlib_module_names - {"brotli", "zstandard"}
    )


_UNKNOWN = (
    KeyError, ValueError, TypeError, LookupError, EOFError, OSError, lzma.LZMAError, zlib.error, brotli.error,
    RecursionError,
)  # fmt: skip


class _Names:
    """A module's imports (local name -> dotted name) and constants, as far as its top-level statements give them."""

    def __init__(self, tree: ast.Module) -> None:
        self.imported: dict[str, str] = {}
        self.assigned: dict[str, ast.expr] = {}
        for node in tree.body:
            match node:
                case ast.Import(names=names):
                    self.imported |= {a.asname or a.name: a.name for a in names}
                case ast.ImportFrom(module=str(module), names=names):
                    self.imported |= {a.asname or a.name: f"{module}.{a.name}" for a in names}
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self.assigned[name] = value

    def value(self, node: ast.expr) -> Any:
        """What an expression comes to. Raises one of _UNKNOWN where that is not known."""
        found: Any
        match node:
            case ast.Constant(value=value):
                found = value
            case ast.Name(id=name):
                found = self.value(self.assigned.pop(name))  # a name that stands for itself ends here
            case ast.NamedExpr(value=inside):
                found = self.value(inside)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                found = self.value(left) + self.value(right)
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                found = [self.value(part) for part in parts]
            case ast.Dict(keys=keys, values=values):
                found = {self.value(k): self.value(v) for k, v in zip(keys, values, strict=True) if k is not None}
            case ast.Attribute():
                found = _CONSTANTS[self._dotted(node)]
            case ast.Subscript(value=whole, slice=ast.Slice() as cut):
                found = self._slice(self.value(whole), cut)
            case ast.Call():
                found = self._call(node)
            case _:
                raise ValueError("not known")
        return found

    def _slice(self, whole: Any, cut: ast.Slice) -> Any:
        lower, upper = (None if edge is None else self.value(edge) for edge in (cut.lower, cut.upper))
        if isinstance(whole, bytes) and whole.startswith(start := unpacker()) and upper == len(start):
            return whole[upper:]  # ours: what is run first goes on to run the rest
        return whole[lower:upper]

    def _call(self, node: ast.Call) -> Any:
        named = {k.arg: self.value(k.value) for k in node.keywords if k.arg}
        if isinstance(node.func, ast.Name) and node.func.id == "compile":
            return self.value(node.args[0])
        arguments = [self.value(argument) for argument in node.args]
        if isinstance(node.func, ast.Attribute) and node.func.attr in {"encode", "decode", "replace", "strip", "join"}:
            text = self.value(node.func.value)
            _refuse_growth(node.func.attr, text, arguments)
            made = getattr(text, node.func.attr)(*arguments, **named)
        else:
            made = _FUNCTIONS[self._dotted(node.func)](*arguments, **named)
        if isinstance(made, str | bytes) and len(made) > LARGEST:
            raise ValueError("larger than any script")
        return made

    def _dotted(self, node: ast.expr) -> str:
        match node:
            case ast.Name(id=name):
                return self.imported.get(name, name)
            case ast.Attribute(value=value, attr=attr):
                return f"{self._dotted(value)}.{attr}"
            case ast.Call(func=ast.Name(id="__import__"), args=[ast.Constant(value=str(name))]):
                return name
        raise ValueError("not known")


def _refuse_growth(what: str, text: Any, arguments: list[Any]) -> None:
    """Raises ValueError where a few characters would become more than any script has; TypeError as the method would."""
    size = 0
    if what == "replace":
        size = text.count(arguments[0]) * len(arguments[1])
    elif what == "join":
        size = len(text) * len(arguments[0]) + sum(map(len, arguments[0]))
    elif what == "encode":
        size = 4 * len(text)  # utf-32
    if size > LARGEST:
        raise ValueError("larger than any script")


def _bytes(value: Any = b"", *encoding: str) -> bytes:
    if isinstance(value, int) and value > LARGEST:
        raise ValueError("larger than any script")
    return bytes(value, *encoding)


def _zlib(data: bytes, wbits: int = zlib.MAX_WBITS, **_: Any) -> bytes:
    decoder = zlib.decompressobj(wbits)
    return _ended(decoder.decompress(data, LARGEST), decoder.eof)


def _gzip(data: bytes) -> bytes:
    return _zlib(data, 31)


def _bz2(data: bytes) -> bytes:
    decoder = bz2.BZ2Decompressor()
    return _ended(decoder.decompress(data, LARGEST), decoder.eof)


def _lzma(data: bytes, format: int = lzma.FORMAT_AUTO, memlimit: Any = None, filters: Any = None) -> bytes:
    decoder = lzma.LZMADecompressor(format, memlimit, filters)
    return _ended(decoder.decompress(data, LARGEST), decoder.eof or format == lzma.FORMAT_RAW)


def _brotli(data: bytes) -> bytes:
    decoder = brotli.Decompressor()
    return _ended(decoder.process(data, output_buffer_limit=LARGEST), decoder.is_finished())


def _ended(raw: bytes, whole: bool) -> bytes:
    if not whole:
        raise ValueError("cut off, or larger than any script")
    return raw


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "zlib.decompress": _zlib, "gzip.decompress": _gzip, "bz2.decompress": _bz2, "lzma.decompress": _lzma,
    "brotli.decompress": _brotli, "bytes": _bytes, "bytes.fromhex": bytes.fromhex,
    "base64.b85decode": base64.b85decode, "base64.a85decode": base64.a85decode, "base64.b64decode": base64.b64decode,
    "base64.b32decode": base64.b32decode, "base64.b16decode": base64.b16decode, "base64.decodebytes": base64.decodebytes,
}  # fmt: skip
_CONSTANTS = {
    f"lzma.{name}": getattr(lzma, name) for name in dir(lzma) if name.startswith(("FORMAT_", "FILTER_", "PRESET_"))
}
