"""`pgolf.open` against `pgolf.load`: the same names, the same bits, and what goes wrong in one line."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import pgolf
from pgolf.errors import ArtifactError, UsageError
from tests.helpers import generator


def state():
    g = generator(1)
    bank = torch.randn(3, 40, 30, generator=g)
    table = torch.randn(90, 40, generator=g).bfloat16()
    return {
        "a.weight": torch.randn(64, 48, generator=g),
        "bank": bank,
        "head.weight": table,
        "mask": torch.ones(5, 5, dtype=torch.bool),
        "norm": torch.rand(16, generator=g),
        "tok.weight": table,
    }


@pytest.fixture(params=["rans", "brotli"])
def path(request, tmp_path):
    pgolf.pack(state(), tmp_path / "m.pgolf", budget=14_000, coder=request.param)
    return tmp_path / "m.pgolf"


def test_it_gives_what_load_gives(path):
    whole = pgolf.load(path)
    with pgolf.open(path) as file:
        assert list(file) == file.keys() == list(whole)
        assert len(file) == len(whole)
        assert "norm" in file
        assert "nothing" not in file
        for name in reversed(file.keys()):
            assert (file.shape(name), file.dtype(name)) == (tuple(whole[name].shape), whole[name].dtype)
            assert torch.equal(file[name], whole[name])
            assert torch.equal(file.get_tensor(name), whole[name])
        assert {name: file.tied_to(name) for name in ("head.weight", "tok.weight")} == {
            "head.weight": None,
            "tok.weight": "head.weight",
        }


def test_parts_are_read_as_safe_open_reads_them(tmp_path):
    names = (
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "int64",
        "int32",
        "int16",
        "int8",
    )
    tensors = {name: torch.ones(6, 4).to(getattr(torch, name)) for name in (*names, "uint8", "bool")}
    save_file(tensors, tmp_path / "m.safetensors")
    pgolf.pack(tensors, tmp_path / "m.pgolf", method="keep")
    with safe_open(tmp_path / "m.safetensors", "pt") as theirs, pgolf.open(tmp_path / "m.pgolf") as ours:
        for name in tensors:
            a, b = theirs.get_slice(name), ours.get_slice(name)
            assert (a.get_shape(), a.get_dtype()) == (b.get_shape(), b.get_dtype())
            assert torch.equal(a[2:4].double(), b[2:4].double())
            assert torch.equal(a[:, -1].double(), b[:, -1].double())
        with pytest.raises(UsageError, match="has no tensor 'w'"):
            ours.get_slice("w")


def test_some_names_are_loaded(path):
    whole = pgolf.load(path)
    some = pgolf.load(path, names=["*.weight", "norm"])
    assert list(some) == ["a.weight", "head.weight", "norm", "tok.weight"]
    assert all(torch.equal(some[name], whole[name]) for name in some)
    assert some["head.weight"] is some["tok.weight"]
    assert list(pgolf.load(path, names="bank")) == ["bank"]
    with pytest.raises(
        UsageError, match=r"'blocks\.\*' matches no tensor; names look like a\.weight, bank, head\.weight"
    ):
        pgolf.load(path, names=["bank", "blocks.*"])


def test_metadata_is_the_configuration(tmp_path):
    pgolf.pack({"model": state(), "config": {"width": 40}}, tmp_path / "m.pgolf", method="keep")
    with pgolf.open(tmp_path / "m.pgolf") as file:
        assert file.metadata() == {"config": {"width": 40}}


def test_mistakes_are_told_in_a_line(path, tmp_path):
    with pgolf.open(path) as file:
        with pytest.raises(UsageError, match=r"has no tensor 'b'; names look like a\.weight"):
            file["b"]
        with pytest.raises(UsageError, match="has no tensor 'b'"):
            file.shape("b")
    with pytest.raises(UsageError, match="is closed"):
        file["a.weight"]
    for name, data, says in (
        ("none", None, "No such file"),
        ("empty", b"", "not a pgolf artifact"),
        ("text", b"hello, this is text, and no artifact", "not a pgolf artifact"),
        ("short", path.read_bytes()[:-9], "left over|malformed|inconsistent|checksum"),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ArtifactError, match=says), pgolf.open(tmp_path / name) as file:
            file["a.weight"]
    with pytest.raises(ArtifactError, match="directory"):
        pgolf.open(tmp_path)


def test_damage_shows_when_a_tensor_is_touched(path):
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with pgolf.open(path) as file:
        assert file.shape("bank") == (3, 40, 30)
        with pytest.raises(ArtifactError, match="checksum does not match"):
            file["bank"]
    with pytest.raises(ArtifactError, match=r"m\.pgolf: .*checksum does not match"):
        pgolf.load(path, names="norm")
