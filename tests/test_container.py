import json
import os
import stat
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import brotli
import pytest

from fuzz.mutate import repaired
from pgolf.errors import ArtifactError, UsageError
from pgolf.packer import container, general


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
    with pytest.raises(ArtifactError, match="version 2"):
        container.parse(data[:8] + b"\x02\x00" + data[10:])


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
    with pytest.raises(ValueError, match=f"{size} bytes, more than"):
        an_artifact()


def test_canonical_json():
    assert container.canonical({"b": [1.5, "é"], "a": None}) == '{"a":null,"b":[1.5,"é"]}'.encode()
    assert json.loads(container.canonical({"x": 0.1})) == {"x": 0.1}


def test_replacing_writes_whole_files(tmp_path):
    target = tmp_path / "model.pgolf"
    target.write_bytes(b"old")
    with container.replacing(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["model.pgolf"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_replacing_leaves_nothing_behind(tmp_path, error):
    def fail():
        with container.replacing(tmp_path / "model.pgolf") as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == []


def test_what_went_wrong_is_told_even_if_somebody_took_the_file(tmp_path):
    def fail():
        with container.replacing(tmp_path / "model.pgolf"):
            for left in tmp_path.iterdir():
                left.unlink()
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        fail()


def test_replacing_a_directory_leaves_it_alone(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(IsADirectoryError, match="model"), container.replacing(tmp_path / "model"):
        pytest.fail("what is written into this block is lost")
    assert os.listdir(tmp_path) == ["model"]


WRITE_FOREVER = """
import sys, time
from pathlib import Path
from pgolf.packer.container import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    """And only that: the temporary file of a writer that lives is left alone."""
    target = tmp_path / "mod[el].pgolf"
    target.write_bytes(b"old")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(target)], stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline() == b"writing\n"
        assert len(list(tmp_path.iterdir())) == 3
        writers[0].kill()
        writers[0].wait()
        assert target.read_bytes() == b"old"
        with container.replacing(target) as file:
            file.write(b"new")
        assert target.read_bytes() == b"new"
        assert len(list(tmp_path.iterdir())) == 2
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    with container.replacing(target) as file:
        file.write(b"newer")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"newer"]


def test_a_new_file_waits_for_a_cleaner_that_looks_at_it(tmp_path, monkeypatch):
    """A cleaner lets go once somebody waits; whoever does not wait writes a file that is about to be removed."""
    fcntl = pytest.importorskip("fcntl")
    real = fcntl.flock

    def flock(file, how):
        if not how & fcntl.LOCK_NB:
            cleaner.close()
        real(file, how)

    with open(tmp_path / "a", "xb") as file, open(tmp_path / "a", "rb") as cleaner:
        assert container.lock(cleaner.fileno())
        assert container.lock(file.fileno()) is False
        monkeypatch.setattr(fcntl, "flock", flock)
        assert container.lock(file.fileno(), wait=True)


def test_a_new_file_that_a_cleaner_took_is_made_again(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    real, calls = fcntl.flock, []

    def flock(file, how):
        calls.append(how)
        if len(calls) == 1:
            next(tmp_path.glob(".m.*.tmp")).unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with container.replacing(tmp_path / "m") as file:
        file.write(b"new")
    assert (tmp_path / "m").read_bytes() == b"new"
    assert calls == [fcntl.LOCK_EX] * 2


@pytest.mark.parametrize("locks", [True, False])
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, locks):
    """Systems without locks rename closed files only, and never know whether another file was left behind."""
    if not locks:
        monkeypatch.setattr(container, "fcntl", None)
    elif container.fcntl is None:
        pytest.skip("no locks on this system")
    events, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda number: events.append(("fsync", os.fstat(number).st_size)))
    monkeypatch.setattr(os, "replace", lambda *names: (events.append(("closed", file.closed)), replace(*names)))
    (tmp_path / ".m.0.tmp").write_bytes(b"left behind")
    with container.replacing(tmp_path / "m") as file:
        file.write(b"new")
    assert events == [("fsync", 3), ("closed", not locks)]
    assert len(list(tmp_path.iterdir())) == (1 if locks else 2)


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, container.replacing(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")


def test_a_full_disk_is_named(tmp_path):
    """/dev/full stands for one: every write to it fails."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")

    def fill():
        with container.replacing(tmp_path / "a") as file, open("/dev/full", "wb") as full:
            os.dup2(full.fileno(), file.fileno())
            file.write(b"x")

    with pytest.raises(OSError, match="No space left") as caught:
        fill()
    assert caught.value.filename == str(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
