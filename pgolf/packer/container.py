"""The artifact file: preamble, header, sections; written whole or not at all, believed only after every check.

    preamble (28 bytes)   magic "\\x89PGOLF\\r\\n", u16 version, u8 header codec, u8 zero, u32 stored header bytes,
                          u32 raw header bytes, u32 CRC-32 of the content, u32 CRC-32 of the file without this field
    header                canonical JSON (sorted keys, no spaces), stored or brotli
    sections              stored one after another in the order of their names, nothing between them and nothing after

What will surprise you:
* The CRC of the file is checked first: a flipped bit never reaches a parser. What follows still trusts nothing,
  because a hostile file has a good CRC.
* The CRC of the content goes over the raw header and the raw sections: it holds the decompressors to account.
* docs/FORMAT.md is the specification; its annotated dump is parsed by a test.
"""

from __future__ import annotations

import glob
import json
import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pgolf.errors import ArtifactError
from pgolf.packer import general

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAGIC = b"\x89PGOLF\r\n"
VERSION = 1
_PREAMBLE = struct.Struct("<8sHBBIIII")
MAX_HEADER = 1 << 24
MAX_SECTIONS = 64
HEADER_CODECS = ("stored", "brotli")  # they decompress piece by piece: a lie about the size allocates nothing


def canonical(value: Any) -> bytes:
    """The one JSON form of a header: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def dump(head: dict[str, Any], sections: dict[str, bytes], stored: dict[str, general.Compressed]) -> bytes:
    """The artifact's bytes. head: JSON-able; sections and stored: name -> raw and compressed bytes.

    Raises ValueError if the header is larger than a reader accepts.
    """
    names = sorted(stored)
    index = [_section_record(name, stored[name]) for name in names]
    raw = canonical({**head, "sections": index})
    if len(raw) > MAX_HEADER:
        raise ValueError(f"the header would take {len(raw)} bytes, more than the format allows")
    header = general.compress(raw, codecs=HEADER_CODECS)
    body = header.data + b"".join(stored[n].data for n in names)
    number = general.CODECS[header.codec].number
    content = _content_crc(raw, sections)
    start = _PREAMBLE.pack(MAGIC, VERSION, number, 0, len(header.data), len(raw), content, 0)[:-4]
    return start + struct.pack("<I", zlib.crc32(body, zlib.crc32(start))) + body


def _section_record(name: str, section: general.Compressed) -> list[Any]:
    return [name, general.CODECS[section.codec].number, section.shuffle, section.size, len(section.data)]


def _content_crc(raw_header: bytes, sections: dict[str, bytes]) -> int:
    crc = zlib.crc32(raw_header)
    for name in sorted(sections):
        crc = zlib.crc32(sections[name], crc)
    return crc


@dataclass(frozen=True)
class Parsed:
    """A whole file: its header, and its sections still compressed."""

    head: dict[str, Any]
    stored: dict[str, general.Compressed]
    raw_header: bytes
    content_crc: int

    def sections(self) -> dict[str, bytes]:
        """The raw sections. Raises ArtifactError. Check their declared sizes first: they are believed here."""
        sections = {name: general.decompress(stored) for name, stored in self.stored.items()}
        if _content_crc(self.raw_header, sections) != self.content_crc:
            raise ArtifactError("the content does not match its checksum: the artifact is damaged")
        return sections


def parse(data: bytes) -> Parsed:
    """Raises ArtifactError on anything but a whole artifact of this version."""
    if not data.startswith(MAGIC[: max(1, min(len(data), len(MAGIC)))]):
        raise ArtifactError("not a pgolf artifact: it does not start with the pgolf magic bytes")
    if len(data) < _PREAMBLE.size:
        raise ArtifactError(f"the artifact is truncated: {len(data)} bytes are fewer than its preamble")
    _, version, codec, zero, stored, raw_size, content, crc = _PREAMBLE.unpack_from(data)
    if version != VERSION:
        raise ArtifactError(f"the artifact has format version {version}, this pgolf reads {VERSION}: upgrade pgolf")
    body = memoryview(data)[_PREAMBLE.size :]
    if zlib.crc32(body, zlib.crc32(data[: _PREAMBLE.size - 4])) != crc:
        raise ArtifactError("the artifact's checksum does not match: it is truncated or damaged; copy it again")
    name = general.BY_NUMBER.get(codec)
    if zero or name not in HEADER_CODECS or stored > len(body) or raw_size > MAX_HEADER:
        raise ArtifactError("the artifact's preamble is out of range: it is damaged")
    raw = general.decompress(general.Compressed(bytes(body[:stored]), name, 1, raw_size))
    head = _parse_header(raw)
    return Parsed(head, _parse_sections(head.pop("sections", None), body[stored:]), raw, content)


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
            case [str(name), *numbers] if len(numbers) == 4 and all(type(n) is int for n in numbers):
                codec, shuffle, size, stored = numbers
            case _:
                raise ArtifactError("a section of the artifact is malformed: it is damaged")
        good = (
            codec in general.BY_NUMBER
            and shuffle in general.SHUFFLES
            and 0 < size < 1 << 40
            and 0 < stored <= len(body) - at
            and name > max(sections, default="")
        )
        if not good:
            raise ArtifactError("a section of the artifact is out of range: it is damaged")
        sections[name] = general.Compressed(bytes(body[at : at + stored]), general.BY_NUMBER[codec], shuffle, size)
        at += stored
    if at != len(body):
        raise ArtifactError(f"{len(body) - at} bytes left over after the last section: the artifact is damaged")
    return sections


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well, and vanishes when it does not.

    It is a temporary sibling, synced and then renamed, so a reader sees the old file or the whole new one. It is locked
    while it is written: what a killed process left behind is unlocked, and the next writer of `path` removes it.
    """
    path = Path(path)
    _remove_abandoned(path)
    file, name = _locked_sibling(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows renames closed files only
            os.replace(name, path)
    except BaseException as error:
        name.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say where
        raise


def _locked_sibling(path: Path) -> tuple[BinaryIO, Path]:
    """A new file beside `path`, with the permissions that the user's umask gives, and its name."""
    while True:
        name = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        file = open(name, "xb")  # noqa: SIM115 - the caller closes it
        _lock(file, wait=True)
        if name.exists():  # else a cleaner took it between creation and lock
            return file, name
        file.close()


def _remove_abandoned(path: Path) -> None:
    for name in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError), name.open("rb") as file:
            if _lock(file):
                name.unlink()


def _lock(file: BinaryIO, wait: bool = False) -> bool:
    """Whether the file is ours alone now. False too where there are no such locks: nothing is then taken for abandoned."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
