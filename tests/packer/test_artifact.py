import re
import struct
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import brotli
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import mutate
from fuzz.mutate import repaired, with_header
from pgolf.errors import ArtifactError
from pgolf.packer.coder import general
from pgolf.packer.format import artifact, container
from pgolf.packer.format.artifact import CODERS, Entry
from pgolf.packer.plane import HALF, Plane, Scale

RNG = np.random.default_rng(0)


def a_plane(rows, cols, sigma=2.0):
    codes = np.rint(RNG.normal(0, sigma, (rows, cols)) * np.exp(RNG.normal(0, 0.5, rows))[:, None]).astype(np.int32)
    return Plane(codes, Scale.nearest(RNG.uniform(0.5, 2, rows), 8), Scale.nearest(RNG.uniform(0.5, 2, cols), HALF))


ENTRIES = {
    "bank": Entry("bfloat16", (3, 20, 8), planes=tuple(a_plane(20, 8) for _ in range(3)), note="auto"),
    "embed.weight": Entry("float32", (60, 30), planes=(a_plane(60, 30, 40.0),), note="gptq int6"),
    "head.weight": Entry("float32", (60, 30), alias="embed.weight"),
    "gain": Entry("float32", (50,), raw=RNG.normal(size=50).astype("<f4").tobytes(), note="a vector"),
    "bias": Entry("float32", (3,), raw=RNG.normal(size=3).astype("<f4").tobytes(), note="a vector"),
    "half gain": Entry("float32", (5,), raw=RNG.normal(size=5).astype("<f2").tobytes(), stored="float16"),
    "steps": Entry("int64", (), raw=(7).to_bytes(8, "little")),
    "nothing": Entry("float32", (0, 4), raw=b""),
    "mask": Entry("bool", (5,), raw=b"\1\0\1\1\0"),
    "phase": Entry("complex128", (1,), raw=bytes(16)),
}
META = {"config": {"layers": 11, "rope": 1e4, "name": "é"}}


def assert_same(before, after):
    assert list(after) == sorted(before)
    for name, entry in before.items():
        found = after[name]
        assert replace(found, planes=None) == replace(entry, planes=None)
        assert (found.planes is None) == (entry.planes is None)
        for old, new in zip(entry.planes or (), found.planes or (), strict=True):
            assert new.codes.shape == old.codes.shape
            assert (new.reconstruct() == old.reconstruct()).all()


@pytest.fixture(scope="module")
def data():
    return artifact.encode(ENTRIES, META).data


@pytest.mark.parametrize("coder", CODERS)
def test_round_trip(coder):
    encoded = artifact.encode(ENTRIES, META, coder)
    entries, meta = artifact.decode(encoded.data)
    assert_same(ENTRIES, entries)
    assert meta == META
    assert set(encoded.tensor_bits) == {name for name, entry in ENTRIES.items() if entry.planes}
    assert sum(encoded.tensor_bits.values()) / 8 < len(encoded.data)


def test_sizes_of_items_are_those_of_torch():
    assert {name: getattr(torch, name).itemsize for name in artifact.DTYPE_SIZES} == artifact.DTYPE_SIZES


@pytest.mark.parametrize(
    ("section", "coder", "codec", "item"),
    [
        ("raw.1", "rans", "brotli", 1), ("raw.2", "rans", "brotli", 2), ("raw.4", "rans", "brotli", 4),
        ("raw.8", "rans", "brotli", 8), ("raw.16", "rans", "brotli", 8), ("raw.4", "zlib", "brotli", 4),
        ("half", "zlib", "brotli", 2), ("index", "zlib", "brotli", 4), ("codes.2", "zlib", "zlib", 1),
        ("codes.1", "lzma", "lzma", 1), ("side.tables", "rans", "brotli", 1), ("side.lanes", "rans", "brotli", 4),
        ("codes.escapes", "rans", "brotli", 4), ("codes.words", "rans", "stored", 1), ("codes.aside", "rans", "stored", 1),
    ],
)  # fmt: skip
def test_how_each_section_is_compressed(section, coder, codec, item):
    """Of a file whose every `item`-th byte is noise."""
    numbers = np.zeros((512, item), np.uint8)
    numbers[:, 0] = np.random.default_rng(0).integers(0, 99, 512)
    found = artifact._compress(section, numbers.tobytes(), coder)
    assert (general.BY_NUMBER[found.codec], found.shuffle) == (codec, item)


def test_codes_are_not_shuffled_for_another_coder():
    """The comparison is with what a submission does: one byte a weight, compressed."""
    numbers = np.arange(1024, dtype="<u2").tobytes()
    assert general.compress(numbers, 2, ("zlib",)).shuffle == 2
    assert artifact._compress("codes.1", numbers, "zlib").shuffle == 1


def test_nothing_round_trips():
    assert artifact.decode(artifact.encode({}).data) == ({}, {})


def test_order_does_not_matter(data):
    backwards = dict(reversed(ENTRIES.items()))
    assert artifact.encode(backwards, META).data == data


def test_general_coders_bytes_are_shared_out_by_content():
    """Codes of three bits take half of what those of six bits take; what was there before takes next to nothing."""
    codes = {"a": RNG.integers(0, 8, (160, 64)), "b": RNG.integers(0, 64, (160, 64)), "d": np.full((160, 64), 5)}
    planes = {name: Plane(values.astype(np.int32)) for name, values in codes.items()}
    of = {name: Entry("float32", (160, 64), planes=(plane,)) for name, plane in planes.items()}
    encoded = artifact.encode(of | {"c": Entry("float32", (2, 160, 64), planes=(planes["b"],) * 2)}, {}, "brotli")
    (size,) = [len(data) for data, *_ in container.parse(encoded.data)[1].values()]
    shares = {name: bits / 8 / size for name, bits in encoded.tensor_bits.items()}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["b"] / shares["a"] == pytest.approx(2, rel=0.1)
    assert shares["c"] + shares["d"] < 0.02


def test_contents_without_a_device(data):
    """As the decoder stub reads them."""
    found = {record[0]: (planes, raw) for record, planes, raw in artifact.contents(*container.parse(data))}
    assert list(found) == sorted(ENTRIES)
    for name, (planes, raw) in found.items():
        assert raw == (ENTRIES[name].raw or b"")
        for old, new in zip(ENTRIES[name].planes or (), planes, strict=True):
            assert (new.codes == old.codes).all()


def test_bits_are_the_tensors_own():
    big = {"a": Entry("float32", (400, 300), planes=(a_plane(400, 300),)), "b": ENTRIES["gain"]}
    encoded = artifact.encode(big)
    assert sum(encoded.tensor_bits.values()) / 8 == pytest.approx(len(encoded.data), abs=1200)


def test_bits_are_what_rans_makes_of_the_codes():
    """Two tensors of the same numbers, of which one has its large ones in rows of their own: only rANS tells them apart."""
    rows = np.rint(RNG.normal(0, 2.0 ** (RNG.integers(0, 2, 300) * 5)[:, None], (300, 100))).astype(np.int32)
    codes = {"rows": rows, "mixed": RNG.permutation(rows.ravel()).reshape(rows.shape)}
    bits = artifact.encode({n: Entry("float32", c.shape, planes=(Plane(c),)) for n, c in codes.items()}).tensor_bits
    assert bits["rows"] < 0.9 * bits["mixed"]


def test_an_unknown_coder_asks_for_a_newer_pgolf(data):
    head, stored, _ = container.parse(data)
    with pytest.raises(ArtifactError, match=r"coded with 'ans2', unknown to this pgolf: upgrade pgolf"):
        artifact.check_head(head | {"coder": "ans2"}, {name: size for name, (*_, size) in stored.items()})


def test_constants_alone_take_what_their_section_takes():
    plane = Plane(np.full((3, 4), 7, np.int32))
    encoded = artifact.encode({"w": Entry("float32", (3, 4), planes=(plane,))}, {}, "zlib")
    (size,) = [len(data) for data, *_ in container.parse(encoded.data)[1].values()]
    assert encoded.tensor_bits == {"w": 8 * size}


@pytest.mark.parametrize("coder", ["rans", "brotli"])
def test_every_truncation_and_appended_byte_is_refused(coder):
    data = artifact.encode(ENTRIES, META, coder).data
    for size in range(0, len(data), 7):
        with pytest.raises(ArtifactError):
            artifact.decode(data[:size])
    for extra in (b"\0", data):
        with pytest.raises(ArtifactError):
            artifact.decode(data + extra)


def mutated(data, rng):
    """One to four bytes flipped, overwritten, cut out or put in; half of the time with the file's CRC repaired."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(out)))
        match rng.integers(4):
            case 0:
                out[at] ^= 1 << rng.integers(8)
            case 1:
                out[at] = rng.integers(256)
            case 2:
                del out[at : at + int(rng.integers(1, 9))]
            case 3:
                out[at:at] = rng.bytes(int(rng.integers(1, 9)))
    return repaired(bytes(out)) if len(out) > 28 and rng.random() < 0.8 else bytes(out)


@pytest.mark.parametrize("coder", ["rans", "brotli"])
def test_mutated_artifacts_are_refused_or_the_original(coder):
    """10,000 of them, none of which takes twice the memory of the honest one."""
    data = artifact.encode(ENTRIES, META, coder).data
    rng = np.random.default_rng(1)
    tracemalloc.start()
    artifact.decode(data)
    honest = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    accepted = 0
    for _ in range(5000):
        try:
            entries, meta = artifact.decode(mutated(data, rng))
        except ArtifactError:
            continue
        accepted += 1
        assert_same(ENTRIES, entries)
        assert meta == META
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert accepted < 50
    assert peak < 2 * honest + 100_000


def _tensor(head, name):
    return next(t for t in head["tensors"] if t[0] == name)


def _section(head, name):
    return next(s for s in head["sections"] if s[0] == name)


HOSTILE = {
    "a tensor of another shape": lambda h: _tensor(h, "embed.weight").__setitem__(2, [60, 31]),
    "tensor and plane much larger": lambda h: (
        _tensor(h, "embed.weight").__setitem__(2, [1 << 20, 1 << 10]),
        h["planes"][-1].__setitem__(0, 1 << 20),
        h["planes"][-1].__setitem__(1, 1 << 10),
    ),
    "kept tensor much larger": lambda h: _tensor(h, "gain").__setitem__(2, [1 << 30]),
    "kept tensor and section much larger": lambda h: (
        _tensor(h, "gain").__setitem__(2, [1 << 36]),
        _section(h, "raw.4").__setitem__(3, 1 << 38),
    ),
    "negative": lambda h: _tensor(h, "gain").__setitem__(2, [-50, -1]),
    "a bool": lambda h: _tensor(h, "gain").__setitem__(2, [True, 50]),
    "dtype": lambda h: _tensor(h, "gain").__setitem__(1, "float31"),
    "alias of nothing": lambda h: _tensor(h, "head.weight").__setitem__(4, "nobody"),
    "alias of itself": lambda h: _tensor(h, "head.weight").__setitem__(4, "head.weight"),
    "items of another size": lambda h: _tensor(h, "gain").__setitem__(3, -2),
    "planes with a stored dtype": lambda h: _tensor(h, "bank").__setitem__(4, "float32"),
    "one plane too many": lambda h: _tensor(h, "bank").__setitem__(3, 4),
    "negative planes": lambda h: _tensor(h, "bank").__setitem__(3, -3),
    "planes swapped": lambda h: h["planes"].reverse(),
    "names out of order": lambda h: h["tensors"].reverse(),
    "a name twice": lambda h: _tensor(h, "nothing").__setitem__(0, "phase"),
    "a field too many": lambda h: h.__setitem__("zzz", 1),
    "a field missing": lambda h: h.pop("meta"),
    "meta of another kind": lambda h: h.__setitem__("meta", [1]),
    "unknown coder": lambda h: h.__setitem__("coder", "zpaq"),
    "another coder": lambda h: h.__setitem__("coder", "brotli"),
    "checksum": lambda h: h.__setitem__("check", 0),
    "unknown section": lambda h: _section(h, "raw.4").__setitem__(0, "raw.4x"),
    "no tensors": lambda h: h.__setitem__("tensors", []),
    "tensors of another kind": lambda h: h.__setitem__("tensors", {"a": 1}),
    "planes of another kind": lambda h: h.__setitem__("planes", 5),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_headers_are_refused_cheaply(data, how):
    hostile = with_header(data, HOSTILE[how])
    tracemalloc.start()
    with pytest.raises(ArtifactError):
        artifact.decode(hostile)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def a_stack():
    """Three tensors in one plane, a tie, a kept one between them by name."""
    whole = a_plane(12, 5)
    rows = {"h.0": slice(0, 4), "h.1": slice(4, 8), "h.2": slice(8, 12)}
    made = {
        name: Entry("float32", (4, 5), planes=(whole.part(part),), part_of="h.0" if part.start else None)
        for name, part in rows.items()
    }
    own = a_plane(4, 5)
    return made | {
        "h.1.gain": Entry("float32", (1,), raw=bytes(4)),
        "own": Entry("float32", (4, 5), planes=(own,)),
        "tied": Entry("float32", (4, 5), alias="own"),
    }


@pytest.mark.parametrize("coder", CODERS)
def test_tensors_in_the_rows_of_one_matrix(coder):
    made = a_stack()
    encoded = artifact.encode(made, META, coder)
    assert container.version(encoded.data) == 2
    found, meta = artifact.decode(encoded.data)
    assert_same(made, found)
    assert artifact.encode(found, meta, coder).data == encoded.data
    alone = {name: bits for name, bits in encoded.tensor_bits.items() if name.startswith("h.")}
    assert len(set(alone.values())) == 1  # equal shares of one matrix
    assert all(bits > 0 for bits in alone.values())


STACKS = {
    "rows left over": lambda h: h["tensors"].pop(3),
    "rows missing": lambda h: _tensor(h, "h.2").__setitem__(2, [5, 5]),
    "rows cut": lambda h: (_tensor(h, "h.2").__setitem__(2, [3]), _tensor(h, "h.1").__setitem__(2, [37])),
    "an empty part": lambda h: (_tensor(h, "h.2").__setitem__(2, [0, 5]), _tensor(h, "h.1").__setitem__(2, [8, 5])),
    "another dtype": lambda h: _tensor(h, "h.1").__setitem__(1, "float16"),
    "a tie to a stack": lambda h: _tensor(h, "tied").__setitem__(4, "h.0"),
    "a part of a part": lambda h: _tensor(h, "h.2").__setitem__(4, "h.1"),
    "an earlier part": lambda h: (
        _tensor(h, "h.0").__setitem__(3, 0),
        _tensor(h, "h.0").__setitem__(4, "h.1"),
        _tensor(h, "h.1").__setitem__(3, 1),
        _tensor(h, "h.1").__setitem__(4, ""),
        _tensor(h, "h.2").__setitem__(4, "h.1"),
    ),
    "a nameless first": lambda h: (
        _tensor(h, "h.0").__setitem__(0, ""),
        *(_tensor(h, name).__setitem__(4, "") for name in ("h.1", "h.2")),
    ),
}


@pytest.mark.parametrize("how", STACKS)
def test_hostile_stacks_are_refused(how):
    honest = artifact.encode(a_stack()).data
    artifact.decode(with_header(honest, lambda head: None))
    with pytest.raises(ArtifactError, match=r"do not fit its shape|shares storage with no stored"):
        artifact.decode(with_header(honest, STACKS[how]))


def test_a_version_says_what_is_in_a_file(data):
    stack = artifact.encode(a_stack()).data
    for honest, version in ((stack, 1), (data, 2)):
        with pytest.raises(ArtifactError, match="its format version does not"):
            artifact.decode(repaired(honest[:8] + bytes([version, 0]) + honest[10:]))


def test_an_untouched_header_passes(data):
    """So that the tests above fail for the reason they name."""
    assert_same(ENTRIES, artifact.decode(with_header(data, lambda head: None))[0])


KEPT = ["k", "float32", [2], -4, "", ""]


@pytest.mark.parametrize(
    ("records", "good"),
    [
        ([KEPT], True), ([["a", "int8", [], 0, "k", ""], KEPT], True), ([["a", "int8", [2], -8, "int64", ""]], True),
        ([["a", "int8", [2], 1, "", ""]], True),
        ([["a", "int8", [1], 0, "int8", ""], ["int8", "int8", [1], -1, "", ""]], True),
        ([KEPT, KEPT], False), ([KEPT, ["a", "int8", [2], -1, "", ""]], False),
        ([["a", "int8", [1], 0, "b", ""], ["b", "int8", [1], 0, "k", ""], KEPT], False),  # a name of a name
        ([["a", "int8", [1], 0, "x", ""], KEPT], False), ([["a", "int8", [1], 0, "", ""], KEPT], False),
        ([["a", "int8", [1], -1, "float31", ""]], False), ([["a", "int8", [1], -2, "", ""]], False),
        ([["a", "int8", [1], 1, "int8", ""]], False), ([["a", "int8", [5, -1], -1, "", ""]], False),
        ([["a", "int8", [-1], -1, "", ""]], False), ([["a", "int8", [True], -1, "", ""]], False),
        ([["a", "int8", [1], True, "", ""]], False), ([["a", "int9", [1], 1, "", ""]], False), ([["a"]], False), ([7], False),
    ],
)  # fmt: skip
def test_tensor_records(records, good):
    if good:
        artifact.check_tensors(records)
    else:
        with pytest.raises(ArtifactError, match=r"malformed, repeated or out of order|shares storage with no stored"):
            artifact.check_tensors(records)


@pytest.mark.parametrize(
    ("shape", "kind", "shapes", "good"),
    [
        ([2, 3], 1, [(2, 3)], True), ([6], 1, [(2, 3)], True), ([2, 2, 3], 2, [(2, 3)] * 2, True), ([0], 1, [(0, 3)], True),
        ([], 1, [(1, 1)], True), ([2], -4, [], True), ([2], 0, [], True), ([2, 3], 1, [(2, 2)], False),
        ([2, 2, 3], 2, [(2, 3), (3, 2)], False), ([2, 3], 2, [(2, 3)], False), ([2, 3], 1, [(2, 3)] * 2, False),
        ([2, 3], 1, [], False), ([2], -4, [(2, 1)], False), ([2], 0, [(2, 1)], False),
    ],
)  # fmt: skip
def test_planes_fit_their_tensor(shape, kind, shapes, good):
    if good:
        artifact.check_shapes([["w", "float32", shape, kind, "", ""]], shapes)
    else:
        with pytest.raises(ArtifactError, match=r"do not fit its shape|left over"):
            artifact.check_shapes([["w", "float32", shape, kind, "", ""]], shapes)


@pytest.mark.parametrize("coder", ["rans", "zlib"])
def test_sections_have_the_sizes_that_tensors_need(coder):
    head, stored, _ = container.parse(artifact.encode(ENTRIES, META, coder).data)
    declared = {name: size for name, (_, _, _, size) in stored.items()}
    artifact.check_head(head, declared)
    exact = {name for name in declared if coder != "rans" or name.startswith("raw.")}
    assert len(exact) > 3
    for name in exact:
        for wrong in (declared[name] + 1, declared[name] - 1, 0):
            with pytest.raises(ArtifactError, match="does not have the size"):
                artifact.check_head(head, declared | {name: wrong})
    with pytest.raises(ArtifactError, match=r"section 'raw\.3' does not have the size"):
        artifact.check_head(head, declared | {"raw.3": 1})
    head["planes"][0].append(0)
    with pytest.raises(ArtifactError, match="plane record"):
        artifact.check_head(head, declared)


@pytest.mark.parametrize("shape", [[1 << 20, 1 << 20], [0, 1 << 39, 2]])
def test_shapes_that_no_tensor_has_are_refused(shape):
    """Where nothing is stored, only this bounds a shape: another name of a tensor, or one of no numbers."""
    records = [["a", "float32", shape, 0, "b", ""], ["b", "float32", [1], -4, "", ""]]
    with pytest.raises(ArtifactError, match="malformed"):
        artifact.check_tensors(records)
    artifact.check_tensors([["a", "float32", [*shape[:-1], shape[-1] // 2], 0, "b", ""], records[1]])


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(mutate.ODD), st.integers(0, 10**6), st.sampled_from(mutate.ODD))
def test_any_two_header_fields_may_lie(which, value, other, second):
    """Enemies with good checksums: an ArtifactError or some well-formed tensors, never another exception."""

    def lies(head):
        for leaf, new in ((which, value), (other, second)):
            mutate.lie(head, leaf, new)

    try:
        entries, _ = artifact.decode(with_header(DATA, lies))
    except ArtifactError:
        return
    assert isinstance(entries, dict)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_any_section_bytes_may_lie(seed):
    """Stored sections changed under good checksums reach the deepest parsers."""
    rng = np.random.default_rng(seed)
    head, stored = mutate.header_and_body(DATA)
    body = bytearray(stored)
    for _ in range(rng.integers(1, 4)):
        body[rng.integers(len(body))] = rng.integers(256)
    with suppress(ArtifactError):
        artifact.decode(mutate.rebuilt(head, bytes(body)))


DATA = artifact.encode(ENTRIES, META).data

BOMB = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
from pgolf.errors import ArtifactError
from pgolf.packer.format import artifact
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    artifact.decode(open(sys.argv[1], "rb").read())
except ArtifactError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("how", ["tensor and plane much larger", "kept tensor and section much larger"])
def test_bombs_take_no_memory(data, tmp_path, how):
    """Measured by the operating system, because decompressors allocate behind Python's back."""
    path = tmp_path / "bomb.pgolf"
    path.write_bytes(with_header(data, HOSTILE[how]))
    out = subprocess.run([sys.executable, "-c", BOMB, str(path)], capture_output=True, text=True, check=True).stdout
    assert int(out) * (1 if sys.platform != "darwin" else 1 / 1024) < 60_000  # KiB


def test_checksum_literal_and_order():
    codes = [np.array([[1, -2], [3, 4]], np.int32), np.array([[5]], np.int16)]
    assert artifact.checksum([Plane(c) for c in codes]) == 1 * 1 - 2 * 3 + 3 * 5 + 4 * 7 + 5 * 9
    assert artifact.checksum([Plane(np.array([[-1]], np.int32))]) == 2**64 - 1


def test_checksum_of_large_codes_is_exact():
    codes = np.random.default_rng(0).integers(-(2**31), 2**31, (3, 40_000)).astype(np.int32)
    expected = sum(int(c) * (2 * i + 1) for i, c in enumerate(codes.ravel().tolist())) % 2**64
    assert artifact.checksum([Plane(codes)]) == expected


SAMPLE = {
    "gain": Entry("float32", (3,), raw=np.array([1, 2, 3], "<f4").tobytes(), note="a vector"),
    "head": Entry("float32", (2, 3), alias="w"),
    "w": Entry(
        "float32",
        (2, 3),
        planes=(Plane(np.array([[1, 0, -1], [200, -3, 2]], np.int32), Scale(np.array([-40, -39], np.int32), 8)),),
        note="sdclip int6",
    ),
}


def test_the_annotated_dump_is_what_the_encoder_writes():
    """docs/FORMAT.md, block ```dump: offset, bytes, meaning. The file changes only with the format."""
    text = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text(encoding="utf-8")
    block = re.search(r"```dump\n(.*?)```", text, re.S)
    assert block is not None
    written = b""
    for line in block[1].splitlines():
        offset, hexadecimal, _ = (part.strip() for part in line.split("|"))
        assert not offset or int(offset, 16) == len(written)
        written += bytes.fromhex(hexadecimal)
    assert artifact.encode(SAMPLE).data == written
    header = re.search(r"```json\n(.*?)```", text, re.S)
    assert header is not None
    size = struct.unpack_from("<I", written, 12)[0]
    assert brotli.decompress(written[24 : 24 + size]).decode() == header[1].replace("\n", "")
    assert_same(SAMPLE, artifact.decode(written)[0])


def test_write_replaces_the_file(tmp_path, data):
    artifact.write(tmp_path / "m.pgolf", data)
    assert (tmp_path / "m.pgolf").read_bytes() == data


def test_scales_whose_products_leave_float32_are_refused():
    large, half = Scale(np.full(4, 120 * 8, np.int32), 8), Scale(np.full(4, 0x7C00, np.int32), HALF)  # half: infinity
    codes = np.ones((4, 4), np.int32)
    middling = Scale(np.full(4, 70 * 8, np.int32), 8)
    one_row = Scale(large.index * np.array([0, 0, 2, 0], np.int32), 8)
    for plane in (
        Plane(codes, large, large),
        Plane(codes, middling, middling),
        Plane(codes, half),
        Plane(codes, None, Scale(large.index * 9, 8)),
        Plane(codes, one_row),
    ):
        data = artifact.encode({"w": Entry("float32", (4, 4), planes=(plane,))}).data
        with pytest.raises(ArtifactError, match="the scales of tensor 'w' are out of range"):
            artifact.decode(data)
    entries, _ = artifact.decode(artifact.encode({"w": Entry("float32", (4, 4), planes=(Plane(codes, large),))}).data)
    assert (entries["w"].planes[0].reconstruct() == 2.0**120).all()
