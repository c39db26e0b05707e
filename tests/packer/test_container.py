import json
import struct
import zlib

import brotli
import pytest

from fuzz.mutate import repaired
from pgolf.errors import ArtifactError, UsageError
from pgolf.packer.coder import general
from pgolf.packer.format import container


def an_artifact(head=None, **sections):
    raw = {"a": b"first", "b": bytes(5000), **sections}
    return container.dump(head or {"x": 1}, raw, {name: general.compress(data) for name, data in raw.items()})


def unpacked(data):
    _, stored, content = container.parse(data)
    return container.unpack(stored, content)


def with_header(data, raw, stored=None):
    """The artifact under another header (bytes), both checksums right."""
    codec, old_size = data[10], struct.unpack_from("<I", data, 12)[0]
    stored = raw if stored is None else stored
    sections = unpacked(data)
    content = zlib.crc32(raw) ^ zlib.crc32(b"".join(sections[n] for n in sorted(sections)))
    start = data[:10] + bytes([0 if stored == raw else codec, 0]) + struct.pack("<III", len(stored), len(raw), content)
    return repaired(start + stored + data[24 + old_size :])


def header(data):
    size, codec = struct.unpack_from("<I", data, 12)[0], data[10]
    return (brotli.decompress if codec == 1 else bytes)(data[24 : 24 + size])


def test_round_trip():
    data = an_artifact({"x": [1, "é", None]})
    assert container.parse(data)[0] == {"x": [1, "é", None]}
    assert unpacked(data) == {"a": b"first", "b": bytes(5000)}


def test_preamble_literal():
    data = container.dump({}, {}, {})
    assert data.hex(" ") == (
        "89 50 47 4f 4c 46 0d 0a 01 00 00 00 0f 00 00 00 0f 00 00 00 1e 5b c1 68"
        " 7b 22 73 65 63 74 69 6f 6e 73 22 3a 5b 5d 7d d2 18 0f 45"
    )


def test_order_of_names_does_not_matter():
    sections = {n: general.compress(n.encode()) for n in "cab"}
    raw = {n: n.encode() for n in "cab"}
    again = {n: sections[n] for n in "abc"}
    assert container.dump({"p": 1, "q": 2}, raw, sections) == container.dump({"q": 2, "p": 1}, raw, again)


def test_every_truncation_is_refused():
    data = an_artifact()
    for size in range(1, len(data)):
        with pytest.raises(ArtifactError, match="bytes are fewer than" if size < 28 else "checksum does not match"):
            container.parse(data[:size])


def test_every_flipped_bit_is_refused():
    data = an_artifact()
    for at in range(len(data)):
        damaged = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
        with pytest.raises(ArtifactError):
            container.parse(damaged)


def test_appended_bytes_are_refused():
    with pytest.raises(ArtifactError, match="checksum"):
        container.parse(an_artifact() + b"\0")
    with pytest.raises(ArtifactError, match="left over"):
        container.parse(repaired(an_artifact() + b"\0"))  # a byte between the last section and the checksum


def test_foreign_and_future_files_are_named():
    with pytest.raises(ArtifactError, match="not a pgolf artifact"):
        container.parse(b"PK\x03\x04" + bytes(50))
    with pytest.raises(ArtifactError, match="not a pgolf artifact"):
        container.parse(b"\x89PNG\r\n\x1a\n" + bytes(50))
    with pytest.raises(ArtifactError, match="not a pgolf artifact"):
        container.parse(b"")
    data = an_artifact()
    with pytest.raises(ArtifactError, match="version 3, this pgolf reads 1 to 2"):
        container.parse(data[:8] + b"\x03\x00" + data[10:])


def test_content_checksum_holds_the_decompressors_to_account():
    data = bytearray(an_artifact())
    data[data.index(b"first")] ^= 1  # the section is stored as it is
    with pytest.raises(ArtifactError, match="content"):
        unpacked(repaired(bytes(data)))


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.replace(b",", b", "),  # not canonical
        lambda raw: b'{"y":0,' + raw[1:],  # keys out of order
        lambda raw: raw[:-1],
        lambda raw: b"[]",
        lambda raw: b"[" * 100_000,
        lambda raw: b"\xff",
        lambda raw: raw.replace(b'"sections"', b'"sectionz"'),
        lambda raw: raw.replace(b'["a",0,', b'["a",9,'),  # codec
        lambda raw: raw.replace(b'["a",0,1,', b'["a",0,3,'),  # shuffle
        lambda raw: raw.replace(b'["a",0,1,5,5]', b'["a",0,1,5,-5]'),
        lambda raw: raw.replace(b'["a",0,1,5,5]', b'["a",0,1,5,5000]'),
        lambda raw: raw.replace(b'["a",0,1,5,5]', b'["a",0,true,5,5]'),
        lambda raw: raw.replace(b'["a",0,1,5,5]', b'["a",0,1,5]'),
        lambda raw: raw.replace(b'["a"', b'["b"'),  # twice
        lambda raw: raw.replace(b'["a"', b'["c"'),  # out of order
        lambda raw: raw.replace(b'["a",0,1,5,5],', b""),  # a gap
    ],
)
def test_hostile_headers_are_refused(change):
    data = an_artifact()
    raw = change(header(data))
    assert raw != header(data)
    with pytest.raises(ArtifactError):
        unpacked(with_header(data, raw))


def test_a_header_bomb_stops_at_its_declared_size():
    data = an_artifact()
    bomb = brotli.compress(b"[" * 10_000_000)
    with pytest.raises(ArtifactError):
        container.parse(with_header(data, b"[" * 100, bomb))


@pytest.mark.parametrize("field", ["codec", "zero", "stored", "raw"])
def test_a_preamble_out_of_range_is_refused(field):
    data = bytearray(an_artifact())
    match field:
        case "codec":
            data[10] = general.CODECS["lzma"].number
        case "zero":
            data[11] = 1
        case "stored":
            struct.pack_into("<I", data, 12, len(data) - container.PREAMBLE_SIZE + 1)
        case "raw":
            struct.pack_into("<I", data, 16, (1 << 24) + 1)
    with pytest.raises(ArtifactError, match="preamble is out of range"):
        container.parse(repaired(bytes(data)))


def test_a_header_may_be_as_large_as_the_format_says():
    data = bytearray(an_artifact())
    struct.pack_into("<I", data, 16, 1 << 24)
    with pytest.raises(ArtifactError, match="section has the wrong size"):
        container.parse(repaired(bytes(data)))


def test_sections_declare_no_more_than_the_format_allows():
    most = (1 << 30) + 64 * 10
    container.check_index([["a", 1, 1, most - 1, 4], ["b", 1, 1, 1, 6]], 10)
    with pytest.raises(ArtifactError, match="more than a file of this size may"):
        container.check_index([["a", 1, 1, most, 4], ["b", 1, 1, 1, 6]], 10)


def test_sections_are_in_order_and_at_most_64():
    def check(names):
        container.check_index([[name, 0, 1, 5, 5] for name in names], 5 * len(names))

    names = [f"{i:02}" for i in range(64)]
    check(names)
    for wrong in ([*names, "64"], ["a", "a"], ["a", "c", "b"]):
        with pytest.raises(ArtifactError, match="malformed"):
            check(wrong)


def test_what_no_reader_takes_is_not_written(monkeypatch):
    stored = sum(len(data) for data, *_ in container.parse(an_artifact())[1].values())
    monkeypatch.setattr(container, "most_raw", {stored: 5005}.get)
    assert container.parse(an_artifact())
    monkeypatch.setattr(container, "most_raw", {stored: 5004}.get)
    with pytest.raises(UsageError, match="repetition"):
        an_artifact()


@pytest.mark.parametrize("sizes", [(0, 0), (0, 5), (5, 0), (-5, 5), (5, -5)])
def test_no_section_is_empty(sizes):
    with pytest.raises(ArtifactError, match="malformed"):
        container.check_index([["a", 0, 1, *sizes], ["b", 0, 1, 10, 10 - sizes[1]]], 10)


def test_a_header_that_no_reader_takes_is_not_written(monkeypatch):
    size = len(header(an_artifact()))
    monkeypatch.setattr(container, "MAX_HEADER", size)
    assert container.parse(an_artifact())
    monkeypatch.setattr(container, "MAX_HEADER", size - 1)
    with pytest.raises(UsageError, match=f"{size} bytes, more than"):
        an_artifact()


def test_canonical_json():
    assert container.canonical({"b": [1.5, "é"], "a": None}) == '{"a":null,"b":[1.5,"é"]}'.encode()
    assert json.loads(container.canonical({"x": 0.1})) == {"x": 0.1}
