"""The artifact file: preamble, header, sections; written whole or not at all, believed only after every check.

    preamble (24 bytes)   magic "\\x89PGOLF\\r\\n", u16 version, u8 header codec, u8 zero,
                          u32 stored header bytes, u32 raw header bytes, u32 CRC-32 of all the rest
    header                canonical JSON (sorted keys, no spaces), compressed
    sections              stored one after another in header order, nothing between them and nothing after

What will surprise you:
* The CRC covers the first 20 bytes too, and is checked first: a flipped bit never reaches a parser. What follows still
  trusts nothing, because a hostile file has a good CRC.
* The header states every section's raw size; their sum is bounded by what the tensors' shapes can need.
* docs/FORMAT.md is the specification; its annotated dump is parsed by a test.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from pgolf.errors import ArtifactError
from pgolf.packer import general

MAGIC = b"\x89PGOLF\r\n"
VERSION = 1
_PREAMBLE = struct.Struct("<8sHBBIII")
MAX_HEADER = 1 << 26
MAX_SECTIONS = 64


def canonical(value: Any) -> bytes:
    """The one JSON form of a header: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def dump(head: dict[str, Any], sections: dict[str, general.Compressed]) -> bytes:
    """The artifact's bytes. head: JSON-able; sections: name -> compressed bytes, stored in order of their names."""
    index = [[n, general.CODECS[s.codec].number, s.shuffle, s.size, len(s.data)] for n, s in sorted(sections.items())]
    raw = canonical({**head, "sections": index})
    header = general.compress(raw)
    body = header.data + b"".join(s.data for _, s in sorted(sections.items()))
    number = general.CODECS[header.codec].number
    start = _PREAMBLE.pack(MAGIC, VERSION, number, 0, len(header.data), len(raw), 0)[:-4]
    return start + struct.pack("<I", zlib.crc32(body, zlib.crc32(start))) + body


def parse(data: bytes) -> tuple[dict[str, Any], dict[str, general.Compressed]]:
    """(head, sections still compressed). Raises ArtifactError on anything but a whole, undamaged artifact."""
    if not data.startswith(MAGIC[: max(1, min(len(data), len(MAGIC)))]):
        raise ArtifactError("not a pgolf artifact: it does not start with the pgolf magic bytes")
    if len(data) < _PREAMBLE.size:
        raise ArtifactError(f"the artifact is truncated: {len(data)} bytes are fewer than its preamble")
    _, version, codec, zero, stored, raw_size, crc = _PREAMBLE.unpack_from(data)
    if version != VERSION:
        raise ArtifactError(f"the artifact has format version {version}, this pgolf reads {VERSION}: upgrade pgolf")
    body = memoryview(data)[_PREAMBLE.size :]
    if zlib.crc32(body, zlib.crc32(data[: _PREAMBLE.size - 4])) != crc:
        raise ArtifactError("the artifact's checksum does not match: it is truncated or damaged; copy it again")
    if zero or codec not in general.BY_NUMBER or stored > len(body) or raw_size > MAX_HEADER:
        raise ArtifactError("the artifact's preamble is out of range: it is damaged")
    header = general.Compressed(bytes(body[:stored]), general.BY_NUMBER[codec], 1, raw_size)
    head = _parse_header(general.decompress(header))
    return head, _parse_sections(head.pop("sections", None), body[stored:])


def _parse_header(raw: bytes) -> dict[str, Any]:
    try:
        head = json.loads(raw.decode("utf-8", "surrogatepass"))
        good = isinstance(head, dict) and canonical(head) == raw
    except (ValueError, RecursionError):
        good = False
    if not good:
        raise ArtifactError("the artifact's header is not canonical JSON: it is damaged")
    return dict(head)


def _parse_sections(index: Any, body: memoryview) -> dict[str, general.Compressed]:
    if not isinstance(index, list) or len(index) > MAX_SECTIONS:
        raise ArtifactError("the artifact's section list is malformed: it is damaged")
    sections: dict[str, general.Compressed] = {}
    at = 0
    for entry in index:
        match entry:
            case [str(name), int(codec), int(shuffle), int(size), int(stored)] if (
                codec in general.BY_NUMBER
                and shuffle in {1, 2, 4, 8}
                and 0 <= size < 1 << 40
                and 0 <= stored <= len(body) - at
                and name not in sections
            ):
                data = bytes(body[at : at + stored])
                sections[name] = general.Compressed(data, general.BY_NUMBER[codec], shuffle, size)
                at += stored
            case _:
                raise ArtifactError("a section of the artifact is malformed: it is damaged")
    if at != len(body):
        raise ArtifactError(f"{len(body) - at} bytes left over after the last section: the artifact is damaged")
    return sections


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well, and vanishes when it does not.

    It is a temporary sibling, synced and then renamed, so a reader sees the old file or the whole new one.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
