"""The artifact file: preamble, header, sections, believed only after every check.

    preamble (24 bytes)   magic "\\x89PGOLF\\r\\n", u16 version, u8 header codec, u8 zero, u32 stored header bytes,
                          u32 raw header bytes, u32 CRC-32 of the raw header ^ that of the raw sections
    header                canonical JSON (sorted keys, no spaces), stored or brotli
    sections              stored one after another in the order of their names, nothing between them
    end (4 bytes)         CRC-32 of all bytes before it

docs/FORMAT.md is the specification; its annotated dump is parsed by a test.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pgolf.errors import ArtifactError, UsageError
from pgolf.packer.coder import general

MAGIC = b"\x89PGOLF\r\n"
VERSIONS = (1, 2)  # that are read; written is the oldest that will do
_PREAMBLE = "<8sHBBIII"  # struct format
PREAMBLE_SIZE = 24
END_SIZE = 4
SOUND = 0x2144DF1C  # the CRC-32 of whatever ends with its own CRC-32: one look at the whole file
DAMAGED = "the artifact's checksum does not match: it is truncated or damaged; copy it again"
MAX_HEADER = 1 << 24
MAX_SECTIONS = 64
HEADER_CODECS = ("stored", "brotli")  # they decompress piece by piece: a lie about the size allocates nothing


def canonical(value: Any) -> bytes:
    """The one JSON form of a header: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def dump(
    head: dict[str, Any], sections: dict[str, bytes], stored: dict[str, general.Compressed], version: int = 1
) -> bytes:
    """The artifact's bytes. head: JSON-able; sections and stored: name -> raw and compressed bytes.

    Raises UsageError if the header or the sections are larger than a reader accepts.
    """
    names = sorted(stored)
    index = [_section_record(name, stored[name]) for name in names]
    if sum(s.size for s in stored.values()) > most_raw(sum(len(s.data) for s in stored.values())):
        raise UsageError("over a gigabyte of the kept tensors is repetition, as of masks: leave such buffers out")
    raw = canonical({**head, "sections": index})
    if len(raw) > MAX_HEADER:
        raise UsageError(
            f"the header would take {len(raw)} bytes, more than the {MAX_HEADER} that the format allows: too many tensors "
            "(200,000?), or too long names or configuration; stack tensors into banks"
        )
    header = general.compress(raw, codecs=HEADER_CODECS)
    body = header.data + b"".join(stored[n].data for n in names)
    content = zlib.crc32(raw) ^ zlib.crc32(b"".join(sections[name] for name in names))
    start = struct.pack(_PREAMBLE, MAGIC, version, header.codec, 0, len(header.data), len(raw), content)
    body = start + header.data + b"".join(stored[n].data for n in names)
    return body + struct.pack("<I", zlib.crc32(body))


def _section_record(name: str, section: general.Compressed) -> list[Any]:
    return [name, section.codec, section.shuffle, section.size, len(section.data)]


Data = general.Data
Stored = tuple[Any, int, int, int]  # a compressed section: arguments of general.decompress


def parse(data: Data, whole: bool = True) -> tuple[dict[str, Any], dict[str, Stored], int]:
    """(header, compressed sections, CRC-32 of the raw sections).

    The CRC of the file is checked first: a flipped bit never reaches a parser. What follows still trusts nothing,
    because a hostile file has a good CRC. Raises ArtifactError on anything but a whole artifact of this version.
    whole=False leaves the CRC to `refuse_damaged`: no byte of a section is read.
    """
    check_start(data)
    if whole and zlib.crc32(data) != SOUND:
        raise ArtifactError(DAMAGED)
    codec, stored, size, content = struct.unpack_from("<BxIII", data, PREAMBLE_SIZE - 14)
    body = data[PREAMBLE_SIZE:]
    if general.BY_NUMBER.get(codec) not in HEADER_CODECS or stored > len(body) or size > MAX_HEADER:
        raise ArtifactError("the artifact's preamble is out of range: it is damaged")
    raw = general.decompress(body[:stored], codec, 1, size)
    check_header(raw)
    head = json.loads(raw)
    index, body, sections = head.pop("sections"), body[stored:], {}
    check_index(index, len(body) - END_SIZE)
    for name, codec, shuffle, size, stored in index:
        sections[name] = body[:stored], codec, shuffle, size
        body = body[stored:]
    return head, sections, content ^ zlib.crc32(raw)


def refuse_damaged(data: Data) -> None:
    """Raises ArtifactError unless the bytes of a file are those that were written."""
    if zlib.crc32(data) != SOUND:
        raise ArtifactError(DAMAGED)


def header_size(data: bytes) -> int:
    """Stored bytes of the header of a whole artifact."""
    return int(struct.unpack_from(_PREAMBLE, data)[4])


def version(data: Data) -> int:
    """Of the format of a file that has a preamble."""
    return int(struct.unpack_from(_PREAMBLE, data)[1])


def unpack(stored: Mapping[str, Stored], content: int) -> dict[str, bytes]:
    """The raw sections. Raises ArtifactError. Check their declared sizes first: they are believed here.

    content: their CRC-32, which holds the decompressors to account.
    """
    sections = {name: general.decompress(*section) for name, section in stored.items()}
    if zlib.crc32(b"".join(sections.values())) != content:
        raise ArtifactError("the content does not match its checksum: the artifact is damaged")
    return sections


def check_start(data: Data) -> None:
    """Raises ArtifactError unless the file begins as an artifact of this version does."""
    if not len(data) or bytes(data[: len(MAGIC)]) != MAGIC[: len(data)]:
        raise ArtifactError("not a pgolf artifact: it does not start with the pgolf magic bytes")
    if len(data) < PREAMBLE_SIZE + END_SIZE:
        raise ArtifactError(f"the artifact is truncated: {len(data)} bytes are fewer than its preamble")
    if struct.unpack_from(_PREAMBLE, data)[3]:
        raise ArtifactError("the artifact's preamble is out of range: it is damaged")
    if (found := version(data)) not in VERSIONS:
        known = f"{VERSIONS[0]} to {VERSIONS[-1]}"
        raise ArtifactError(f"the artifact has format version {found}, this pgolf reads {known}: upgrade pgolf")


def check_header(raw: bytes) -> None:
    """Raises ArtifactError unless it is a canonical JSON object with a list of sections."""
    try:
        head = json.loads(raw)
        good = isinstance(head, dict) and canonical(head) == raw and isinstance(head.get("sections"), list)
    except (ValueError, RecursionError):
        good = False
    if not good:
        raise ArtifactError("the artifact's header is not canonical JSON: it is damaged")


def check_index(index: list[Any], body: int) -> None:
    """Raises ArtifactError unless the sections are in order and fill the body's bytes."""
    good = len(index) <= MAX_SECTIONS and all(map(_is_section, index))
    if not good or any(a[0] >= b[0] for a, b in pairwise(index)):
        raise ArtifactError("the artifact's section list is malformed: it is damaged")
    left = body - sum(entry[4] for entry in index)
    if left:
        raise ArtifactError(f"{left} bytes left over after the last section: the artifact is damaged")
    if (raw := sum(entry[3] for entry in index)) > most_raw(body):
        raise ArtifactError(f"the sections declare {raw} raw bytes, more than a file of this size may: it is damaged")


def most_raw(stored: int) -> int:
    """Raw bytes that so many stored ones may stand for: masks and zeros shrink without end, a bomb would too."""
    return (1 << 30) + 64 * stored


def _is_section(entry: Any) -> bool:
    match entry:
        case [str(_), *numbers] if len(numbers) == 4 and all(type(n) is int for n in numbers):
            codec, shuffle, size, stored = numbers
            return codec in general.BY_NUMBER and shuffle in general.SHUFFLES and min(size, stored) > 0
    return False
