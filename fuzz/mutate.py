"""Damage, from a slip of the disk to an enemy who repairs every checksum.

`damaged` works on any bytes. The rest knows the artifact's preamble (docs/FORMAT.md): a file whose checksums are wrong
never reaches the parsers behind them, so `repaired` and `forged` put them right.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np

from pgolf.errors import ArtifactError
from pgolf.packer.coder import general
from pgolf.packer.format import container
from pgolf.packer.format.container import END_SIZE, PREAMBLE_SIZE

ODD = (0, 1, -1, 2, 3, 255, 511, 1 << 15, 1 << 20, 1 << 31, 1 << 39, 1 << 70, True, None, 1.5, "", "rans", [], {})
_ODDER = (*ODD, float("nan"), float("inf"), -1.5, 1e300, 10**400, "x" * 300, [1, "a"], {"a": None})
_LEFT_OUT = object()
_DEEP = b"[" * 20_000  # beyond what any parser's stack holds
_EDGES = (b"\0", b"\xff", b"\x80", b"\x7f", b"\xff" * 4, b"\0" * 8, b"\xff\xff\xff\x7f")


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four bytes or short runs flipped, overwritten, cut out, put in, or copied from elsewhere in the data."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at, length = int(rng.integers(len(out) + 1)), int(rng.integers(1, 9))
        match rng.integers(6):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.integers(8)
            case 1:
                edge = _EDGES[rng.integers(len(_EDGES))]
                out[at : at + len(edge)] = edge
            case 2:
                del out[at : at + length]
            case 3:
                out[at:at] = rng.bytes(length)
            case 4:
                start = int(rng.integers(len(out) + 1))
                out[at : at + length] = out[start : start + length]
            case _:
                del out[at if rng.random() < 0.1 else len(out) :]
    return bytes(out)


def repaired(artifact: bytes) -> bytes:
    """With the file's checksum right."""
    return artifact[:-END_SIZE] + struct.pack("<I", zlib.crc32(artifact[:-END_SIZE]))


def header_and_body(artifact: bytes) -> tuple[dict[str, Any], bytes]:
    """The parsed header and the stored sections of an honest artifact."""
    size, raw_size = struct.unpack_from("<II", artifact, 12)
    body = artifact[PREAMBLE_SIZE:-END_SIZE]
    return json.loads(general.decompress(body[:size], artifact[10], 1, raw_size)), body[size:]


def rebuilt(head: dict[str, Any], body: bytes, version: int = 1) -> bytes:
    """An artifact of that header and body with every checksum right, as far as the sections still decompress."""
    raw = container.canonical(head)
    content, at = 0, 0
    try:
        for _, codec, shuffle, full, stored in head["sections"]:
            part = general.decompress(body[at : at + stored], codec, shuffle, full)
            content, at = zlib.crc32(part, content), at + stored
    except (ArtifactError, KeyError, ValueError, TypeError, AttributeError, ZeroDivisionError, OverflowError):
        pass
    sizes = struct.pack("<HBBII", version, 0, 0, len(raw), len(raw))
    return repaired(
        container.MAGIC + sizes + struct.pack("<I", content ^ zlib.crc32(raw)) + raw + body + bytes(END_SIZE)
    )


def with_header(artifact: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The artifact with a changed header and every checksum right: what only an enemy writes."""
    head, body = header_and_body(artifact)
    change(head)
    return rebuilt(head, body, container.version(artifact))


def forged(artifact: bytes, rng: np.random.Generator) -> bytes:
    """Header fields that lie, or sections overwritten, under good checksums: it reaches the deepest parsers."""
    head, body = header_and_body(artifact)
    if rng.random() < 0.5:
        for _ in range(rng.integers(1, 3)):
            lie(head, int(rng.integers(1 << 30)), ODD[rng.integers(len(ODD))])
        return rebuilt(head, body, container.version(artifact))
    changed = bytearray(body)
    for _ in range(rng.integers(1, 4)):
        changed[rng.integers(len(changed))] = rng.integers(256)
    return rebuilt(head, bytes(changed))


def json_lie(data: bytes, rng: np.random.Generator) -> bytes:
    """JSON with one or two leaves replaced or left out, or, now and then, something very deep put in."""
    if rng.random() < 0.01:
        at = int(rng.integers(len(data)))
        return data[:at] + _DEEP + data[at:]
    return json.dumps(_told_lies(json.loads(data), rng)).encode()


def json_lines_lie(data: bytes, rng: np.random.Generator) -> bytes:
    """`json_lie` in one line of many."""
    lines = data.splitlines(keepends=True)
    at = int(rng.integers(len(lines)))
    lines[at] = json_lie(lines[at], rng) + b"\n"
    return b"".join(lines)


def safetensors_lie(data: bytes, rng: np.random.Generator) -> bytes:
    """A header that lies, its length put right; JSON inside its metadata lies too."""
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    inner = next((k for k, v in head.get("__metadata__", {}).items() if v.startswith("{")), None)
    if inner is None or rng.random() < 0.3:
        head = _told_lies(head, rng)
    else:
        head["__metadata__"][inner] = json_lie(head["__metadata__"][inner].encode(), rng).decode()
    raw = json.dumps(head).encode()
    return len(raw).to_bytes(8, "little") + raw + data[8 + size :]


def rezipped(data: bytes, rng: np.random.Generator) -> bytes:
    """A zip archive with one member damaged, sometimes two of one name, and every checksum right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        names = old.namelist()
        pickled = [name for name in names if name.endswith(".pkl")]
        chosen = pickled[0] if pickled and rng.random() < 0.7 else names[rng.integers(len(names))]
        for name in names:
            member = old.read(name)
            new.writestr(zipfile.ZipInfo(name), damaged(member, rng) if name == chosen else member)
    return out.getvalue()


def _told_lies(value: Any, rng: np.random.Generator) -> Any:
    for _ in range(rng.integers(1, 3)):
        paths = list(_leaves(value))
        if not paths or paths == [()]:
            return deepcopy(_ODDER[rng.integers(len(_ODDER))])
        path = list(paths[rng.integers(len(paths))])
        branch = path[: rng.integers(1, len(path) + 1)] if rng.random() < 0.3 else path
        lie_at(value, branch, _LEFT_OUT if rng.random() < 0.2 else _ODDER[rng.integers(len(_ODDER))])
    return value


def lie_at(value: Any, path: list[Any], odd: object) -> None:
    """Overwrite what is at `path`, keys and indices from the top, or take it out."""
    *steps, last = path
    for step in steps:
        value = value[step]
    if odd is _LEFT_OUT:
        del value[last]
    else:
        value[last] = deepcopy(odd)  # the next lie may go into it


def lie(head: Any, which: int, value: object) -> None:
    """Overwrite one of the header's leaves, chosen by any integer."""
    leaves = list(_leaves(head))
    lie_at(head, list(leaves[which % len(leaves)]), value)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else None
    if items is None:
        yield path
        return
    for key, item in items:
        yield from _leaves(item, (*path, key))
