"""One matrix of a stream, one tensor of an artifact, against the decoding of everything."""

import numpy as np
import pytest

from pgolf.packer.backends import rans_numba, registry
from pgolf.packer.backends.host import Host
from pgolf.packer.coder import partly, stream
from pgolf.packer.format import artifact, container
from pgolf.packer.format.artifact import Entry
from pgolf.packer.format.partly import Partly
from pgolf.packer.plane import Plane
from tests.packer.test_golden import FOLDER
from tests.packer.test_stream import scalar, walked


def stream_of(lane_bytes):
    cases = [
        scalar(70, 30, 2.0), scalar(0, 5, 1.0), scalar(1500, 3, 300.0), walked(1100, 9, 8), scalar(5, 0, 1.0),
        scalar(40, 200, 40.0), walked(30, 50, 8),
    ]  # fmt: skip
    codes, layouts = zip(*cases, strict=True)
    codes[0][3, 3] = 100_000  # an escape
    codes[5][0, 7] = -(1 << 30)
    coded = stream.encode(codes, layouts, "x", lane_bytes, rans_numba)
    layouts = [
        stream.Layout(y.spread, y.trellis, y.trellis_from, f) for y, f in zip(layouts, coded.families, strict=True)
    ]
    return coded.sections, codes, layouts


@pytest.mark.parametrize("lane_bytes", [50, 700, 1 << 20])  # many lanes to a matrix, and one to several
@pytest.mark.parametrize(("loops", "device"), [(None, None), (rans_numba, Host())])
def test_each_matrix_alone_and_in_any_order(lane_bytes, loops, device):
    sections, codes, layouts = stream_of(lane_bytes)
    assert sections["x.escapes"]
    assert sections["x.aside"]
    for order in ([2], [5], [6, 0, 3], range(7), range(6, -1, -1)):
        found = partly.Matrices(sections, "x", layouts, loops, device)
        for number in order:
            assert (found.matrix(number) == codes[number]).all()


def test_without_escapes_only_its_own_lanes_are_decoded(monkeypatch):
    cases = [scalar(300, 40, 60.0), scalar(200, 50, 2.0), scalar(300, 40, 90.0)]
    codes, layouts = zip(*cases, strict=True)
    coded = stream.encode([np.clip(c, -200, 200) for c in codes], layouts, "x", 500, rans_numba)
    assert "x.escapes" not in coded.sections
    seen, decode = [], partly.rans.decode
    monkeypatch.setattr(
        partly.rans, "decode", lambda lanes, loops: (seen.append(len(lanes.words)), decode(lanes, loops))[1]
    )
    layouts = [
        stream.Layout(y.spread, y.trellis, y.trellis_from, f) for y, f in zip(layouts, coded.families, strict=True)
    ]
    found = partly.Matrices(coded.sections, "x", layouts, rans_numba)
    assert (found.matrix(2) == np.clip(codes[2], -200, 200)).all()
    assert len(seen) == 1
    assert seen[0] < 0.6 * len(coded.sections["x.words"]) / 2


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.pgolf")), ids=lambda p: p.name)
def test_every_tensor_of_every_old_artifact(path, monkeypatch):
    data = path.read_bytes()
    entries, meta = artifact.decode(data)
    for compiled in ("0", "1"):
        monkeypatch.setenv("PGOLF_COMPILED", compiled)
        for names in (list(entries), list(entries)[::-1]):
            file = Partly(memoryview(data))
            assert (file.names, file.head["meta"]) == (list(entries), meta)
            for name in names:
                assert _same(file.entry(name), entries[name])
                assert (file.dtype(name), file.shape(name)) == (entries[name].dtype, entries[name].shape)
                assert file.home(name) == (entries[name].alias or name)


def _same(a: Entry, b: Entry) -> bool:
    rest = ("dtype", "shape", "raw", "alias", "part_of", "stored", "note")
    planes = list(zip(a.planes or (), b.planes or (), strict=True))
    return all(getattr(a, f) == getattr(b, f) for f in rest) and all(
        (p.codes == q.codes).all() and (p.reconstruct() == q.reconstruct()).all() for p, q in planes
    )


def artifact_of(**more) -> bytes:
    rng = np.random.default_rng(0)
    entries = {f"w{i}": _coded(rng.normal(0, 3, (64, 48))) for i in range(4)}
    entries |= {"kept": Entry("float16", (100,), raw=rng.bytes(200)), "tied": Entry("float32", (64, 48), alias="w1")}
    return artifact.encode(entries | more).data


def _coded(values) -> Entry:
    return Entry("float32", values.shape, planes=(Plane(np.rint(values).astype(np.int32)),))


@pytest.mark.parametrize("at", [0.3, 0.6, 0.9, 0.999])
def test_a_damaged_file_gives_names_and_no_weight(at):
    data = bytearray(artifact_of())
    start = container.PREAMBLE_SIZE + container.header_size(bytes(data))
    data[start + int(at * (len(data) - start - 1))] ^= 4
    file = Partly(memoryview(bytes(data)))
    assert file.names == ["kept", "tied", "w0", "w1", "w2", "w3"]
    assert file.shape("w2") == (64, 48)
    for name in ("kept", "w0", "w3"):
        with pytest.raises(artifact.ArtifactError, match="checksum does not match"):
            file.entry(name)


@pytest.mark.parametrize("end", [0, 5, 23, 40, 300])
def test_a_file_cut_off_is_no_artifact(end):
    with pytest.raises(artifact.ArtifactError):
        Partly(memoryview(artifact_of()[:end]))


def test_lanes_that_lie_are_found_behind_a_good_checksum():
    data = artifact_of()
    head, stored, _ = container.parse(data)
    words = bytearray(stored["codes.words"][0])
    words[len(words) // 2] ^= 1
    at = data.index(stored["codes.words"][0])
    damaged = bytearray(data[:-4])
    damaged[at : at + len(words)] = words
    file = Partly(memoryview(bytes(damaged) + container.zlib.crc32(damaged).to_bytes(4, "little")))
    with pytest.raises(artifact.ArtifactError, match="do not end where they must"):
        [file.entry(name) for name in ("w0", "w1", "w2", "w3")]
    assert file.entry("kept").raw  # of another section
    assert registry.loops() is rans_numba
    assert head["coder"] == "rans"
