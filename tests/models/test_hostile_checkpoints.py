"""Checkpoints from strangers: pickles, zip and tar archives, safetensors headers. None runs code or makes a reader swell."""

import io
import pickle
import tarfile
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pgolf.cli import main
from pgolf.errors import CheckpointError
from pgolf.models import checkpoint
from pgolf.train.loop.save import read_state


class Evil:
    """A pickle of it makes a file where it is loaded."""

    def __reduce__(self):
        return open, ("owned", "w")


# ---- pickles


@pytest.mark.parametrize("modern", [True, False])
def test_pickles_with_code_are_refused_wherever_they_are_read(tmp_path, monkeypatch, modern):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(3), "x": Evil()}, "evil.pt", _use_new_zipfile_serialization=modern)
    with pytest.raises(CheckpointError, match=r"will not run|weights_only"):
        checkpoint.read("evil.pt")
    with pytest.raises(CheckpointError, match="damaged, or not the state"):
        read_state(Path("evil.pt"), {})
    for command in ("pack evil.pt --budget 9kB", "estimate evil.pt --budget 9kB", "calibrate evil.pt -o c --model m:m"):
        said = CliRunner().invoke(main, command.split())
        assert said.exit_code == 3
        assert said.stderr.count("\n") == 1
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        checkpoint.read("raw.pt")
    assert not (tmp_path / "owned").exists()


def test_a_tar_archive_is_not_unpacked(tmp_path, monkeypatch):
    """torch.load still reads the tar files of 2016, into a temporary folder."""
    monkeypatch.chdir(tmp_path)
    with tarfile.open("old.pt", "w:") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors", "../outside"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(CheckpointError):
        checkpoint.read("old.pt")
    assert not (tmp_path.parent / "outside").exists()


# ---- zip archives


def members(state):
    data = io.BytesIO()
    torch.save(state, data)
    with zipfile.ZipFile(data) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(path, parts, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts:
            archive.writestr(zipfile.ZipInfo(name), data, compression)


def test_an_archive_as_torch_writes_it_is_read(tmp_path):
    zipped(tmp_path / "x.pt", members({"w": torch.ones(3)}).items())
    assert torch.equal(checkpoint.read(tmp_path / "x.pt").tensors["w"], torch.ones(3))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_can_be_read_in_two_ways_are_refused(tmp_path):
    path, parts = tmp_path / "x.pt", members({"w": torch.zeros(1 << 20)})
    zipped(path, parts.items(), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000  # a bomb of 4 MB
    with pytest.raises(CheckpointError, match="compressed or repeated parts"):
        checkpoint.read(path)
    storage = next(name for name in parts if "/data/" in name)
    zipped(path, [*parts.items(), (storage, bytes(len(parts[storage])))])
    with pytest.raises(CheckpointError, match="compressed or repeated parts"):
        checkpoint.read(path)


def test_declared_sizes_of_an_archive_must_be_the_real_ones(tmp_path):
    path = tmp_path / "x.pt"
    zipped(path, members({"w": torch.ones(1000)}).items())
    data = path.read_bytes()
    size = (4000).to_bytes(4, "little")
    for declared in (1, 3999, 4001, 1 << 31):
        path.write_bytes(data.replace(size + size, declared.to_bytes(4, "little") * 2))
        with pytest.raises(CheckpointError):
            checkpoint.read(path)


def test_a_flipped_bit_of_a_weight_is_seen(tmp_path):
    """torch.load checks no checksum where it maps the file."""
    path = tmp_path / "x.pt"
    torch.save({"w": torch.full((1000,), 1.5)}, path)
    data = path.read_bytes()
    at = data.index(torch.full((10,), 1.5).numpy().tobytes())
    path.write_bytes(data[:at] + b"\1" + data[at + 1 :])
    with pytest.raises(CheckpointError, match="does not match its checksum: it is damaged"):
        checkpoint.read(path)


class Forger(pickle.Pickler):
    """Writes tensors of any claim: `Claim` objects, backed by storage "0" of `numel` floats."""

    def persistent_id(self, value):
        return ("storage", torch.FloatStorage, "0", "cpu", value.numel) if isinstance(value, Backing) else None


class Backing:
    def __init__(self, numel):
        self.numel = numel


class Claim:
    def __init__(self, size, stride, offset=0, numel=16):
        self.arguments = (Backing(numel), offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


def forged(path, **claims):
    parts, pickled = members({"w": torch.ones(16)}), io.BytesIO()
    Forger(pickled, 2).dump(claims)
    zipped(path, [(n, pickled.getvalue() if n.endswith(".pkl") else data) for n, data in parts.items()])
    return path


@pytest.mark.parametrize(
    "claim",
    [
        Claim((1 << 32, 1 << 32), (1, 1)),  # 2^64 numbers: int64 wraps to none
        Claim((1 << 62, 8), (8, 1)),
        Claim((10**6, 10**6), (0, 0)),  # one number, a million million times
        Claim((4, 4), (4, 1), 1 << 62),
        Claim((4, 4), (4, 1), -4),
        Claim((-4, 4), (4, 1)),
        Claim((1 << 40,), (1,), 0, 1 << 40),
        Claim((1 << 20,), (1,), 0, 1 << 20),  # more than the file holds
    ],
    ids=lambda c: str(c.arguments[1:4]),
)
def test_shapes_that_lie_are_refused_before_anything_is_allocated(tmp_path, claim):
    path = forged(tmp_path / "x.pt", w=claim)
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        checkpoint.read(path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_views_that_repeat_one_storage_are_refused_together(tmp_path):
    assert (
        len(checkpoint.read(forged(tmp_path / "x.pt", a=Claim((4, 4), (4, 1)), b=Claim((2, 2), (4, 2)))).tensors) == 2
    )
    many = {f"w{i}": Claim((1 << 20, 16 - i), (0, 1)) for i in range(3)}
    with pytest.raises(CheckpointError, match=r"188,743,680 bytes, of which 64 are there: .* contiguous"):
        checkpoint.read(forged(tmp_path / "x.pt", **many))


# ---- safetensors


@pytest.mark.parametrize(
    "data",
    [
        b"",
        (1 << 63).to_bytes(8, "little"),
        (2**64 - 1).to_bytes(8, "little") + b"{}",
        (200 << 20).to_bytes(8, "little") + b"{}",
        *(
            len(head).to_bytes(8, "little") + head + bytes(16)
            for head in (
                b'{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}',
                b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,18446744073709551615]}}',
                b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}',
                b'{"w":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}',
                b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"v":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
            )
        ),
    ],
)
def test_safetensors_headers_that_lie_are_refused(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        checkpoint.read(tmp_path / "x.safetensors")
