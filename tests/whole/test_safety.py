"""Files from strangers run no code, name no place, reach nothing outside, and cannot make a reader swell."""

import socket
import tracemalloc
import zlib

import brotli
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import pgolf
from fuzz.mutate import with_header
from pgolf.cli import COMMANDS, main
from pgolf.errors import ArtifactError, ModelError
from pgolf.packer.coder import general
from pgolf.packer.format import artifact, container
from pgolf.packer.format.artifact import Entry
from tests import folders
from tests.helpers import sweep_inputs, toy_state

HOSTILE_NAMES = [
    "../../up",
    "/root",
    "C:\\windows",
    "a/../../b",
    "",
    ".",
    "x\0y",
    "[/bold]",
    "\x1b[2J",
    "<script>",
    "é\nz",
]


def run(command, code=0):
    result = CliRunner().invoke(main, command.split() if isinstance(command, str) else command)
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


# ---- names


def test_names_of_tensors_are_names_and_no_paths(tmp_path, monkeypatch):
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    g = torch.Generator().manual_seed(0)
    state = {name: torch.randn(48, 48, generator=g) for name in HOSTILE_NAMES}
    torch.save(state, "x.pt")
    run("pack x.pt --method rtn")
    assert list(pgolf.load("x.pgolf")) == sorted(HOSTILE_NAMES)
    (inside / "use.py").write_text("import pgolf\nprint(len(pgolf.load('x.pgolf')))\n")
    for command in (
        "inspect x.pgolf --html x.html",
        "diff x.pgolf x.pgolf",
        "estimate x.pt --budget 20kB",
        "unpack x.pgolf -o y.pt",
        "unpack x.pgolf -o y.safetensors",
        "unpack x.pgolf -o hf",
        "export x.pgolf --script use.py -o sub",
    ):
        said = run(command)
        assert "\x1b[2J" not in said.output + said.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]
    assert {p.relative_to(inside).as_posix() for p in inside.rglob("*")} == {
        "x.pt", "x.pgolf", "use.py", "x.html", "y.pt", "y.safetensors", "hf", "hf/model.safetensors",
        "sub", "sub/use.py", "sub/x.pgolf", "sub/requirements.txt", "sub/submission.json",
    }  # fmt: skip
    assert "<script>:" not in (inside / "x.html").read_text()


def test_an_export_neither_follows_links_nor_removes_what_they_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pgolf.pack(toy_state(), "m.pgolf", method="rtn")
    (tmp_path / "use.py").write_text("import pgolf\npgolf.load('m.pgolf')\n")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "work").write_text("work")
    run("export m.pgolf --script use.py -o out")
    (tmp_path / "out" / "link").symlink_to(tmp_path / "precious")
    assert "exists" in run("export m.pgolf --script use.py -o out --force", code=2).stderr
    assert (tmp_path / "precious" / "work").read_text() == "work"
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "exists" in run("export m.pgolf --script use.py -o dangling --force", code=2).stderr
    assert not (tmp_path / "nowhere").exists()


def test_a_link_where_a_file_is_written_is_neither_followed_nor_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pgolf.pack(toy_state(), "m.pgolf", method="rtn")
    (tmp_path / "precious").write_text("work")
    (tmp_path / "hf").mkdir()
    for name in ("hf/model.safetensors", "y.pt"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
        assert "is a symbolic link" in run(f"unpack m.pgolf --force -o {name.split('/')[0]}", code=2).stderr
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / "precious").read_text() == "work"


# ---- artifacts


@pytest.mark.parametrize("codec", [name for name in general.CODECS if name != "stored"])
def test_bombs_in_a_section_stop_at_the_declared_size(codec):
    """32 MiB of zeros in a few KB, declared as a thousand bytes."""
    bomb = general.CODECS[codec].encode(bytes(32 << 20))
    assert len(bomb) < 50_000
    tracemalloc.start()
    with pytest.raises(ArtifactError, match=codec):
        general.decompress(bomb, general.CODECS[codec].number, 1, 1000)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def kept_zeros(declared):
    """A header that keeps `declared` bytes, all zero; the section holds a million of them."""
    data = artifact.encode({"w": Entry("uint8", (1 << 20,), raw=bytes(1 << 20))}).data

    def enlarge(head):
        head["tensors"][0][2] = [declared]
        head["sections"][0][3] = declared

    return with_header(data, enlarge)


@pytest.mark.parametrize("declared", [(1 << 20) + 1, 1 << 29, 1 << 31, (1 << 40) - 1, 1 << 40, 1 << 63, 1 << 64])
def test_an_artifact_that_declares_more_than_it_holds_allocates_nothing(declared):
    tracemalloc.start()
    with pytest.raises(ArtifactError):
        artifact.decode(kept_zeros(declared))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_no_small_file_declares_a_huge_one():
    """Real bombs: declared honestly, and there. A gigabyte is let through, more must be paid for in stored bytes."""
    compressor, pieces = brotli.Compressor(quality=1), []
    for _ in range(1100):
        pieces.append(compressor.process(bytes(1 << 20)))
    bomb = b"".join([*pieces, compressor.finish()])
    assert len(bomb) < 300_000
    head = {"sections": [["raw.1", 1, 1, 1100 << 20, len(bomb)]], "tensors": [["w", "uint8", [1100 << 20], -1, "", ""]]}
    head |= {"coder": "rans", "check": 0, "meta": {}, "planes": []}
    raw = container.canonical(head)
    start = container.MAGIC + np.array([1], "<u2").tobytes() + bytes(2)
    start += np.array([len(raw), len(raw), 0], "<u4").tobytes()
    tracemalloc.start()
    with pytest.raises(ArtifactError, match="more than a file of this size"):
        artifact.decode(sealed(start + raw + bomb))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def sealed(data):
    return data + zlib.crc32(data).to_bytes(4, "little")


@pytest.mark.parametrize("shape", [[1 << 32, 1 << 32], [1 << 63, 2], [1 << 16] * 4, [0, 1 << 64], [-1, -4096]])
def test_shapes_whose_product_wraps_are_refused(shape):
    data = artifact.encode({"w": Entry("float32", (4, 4), raw=np.ones(16, "<f4").tobytes())}).data

    def change(head):
        head["tensors"][0][2] = shape

    with pytest.raises(ArtifactError):
        artifact.decode(with_header(data, change))


# ---- the user's code, and the network


def test_the_help_says_that_the_users_file_is_run():
    for command in ("pack", "eval", "calibrate", "sweep"):
        assert "Its code is run." in " ".join(run([command, "--help"]).output.split())


def test_no_command_reads_a_model_file_that_nobody_named(tmp_path, monkeypatch):
    """A configuration may name a class; only --model runs code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('owned', 'w')\nclass GPT: pass\n")
    config = {"arch": "evil:GPT", "auto_map": {"AutoModel": "evil.GPT"}}
    torch.save({"model": toy_state(), "config": config}, "x.pt")
    run("pack x.pt --budget 9kB")
    with pytest.raises(ModelError, match="not of a pgolf model"):
        pgolf.train.model.rebuild.from_config(config, toy_state())
    assert not (tmp_path / "owned").exists()


class Online(Exception):
    pass


def test_nothing_uses_the_network(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise Online

    monkeypatch.chdir(tmp_path)
    sweep_inputs(tmp_path)
    folders.folder(tmp_path / "hf", "llama")
    (tmp_path / "notes.txt").write_text(folders.text(), encoding="utf-8")
    (tmp_path / "use.py").write_text("import pgolf\npgolf.load('m.pgolf')\n")
    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    text = "--model toy.py:Toy --data val.bin --bytes bytes.bin --seq-len 64"
    for command in (
        "pack ckpt.pt --budget 9kB --model toy.py:Toy --calib val.bin --tokens 640 -o m.pgolf",
        f"eval m.pgolf {text}",
        "calibrate ckpt.pt --model toy.py:Toy --tokens 64 -o c",
        "pack hf --calib notes.txt --tokens 64 --method gptq",
        "eval hf.pgolf --tokenizer hf --data notes.txt --max-tokens 64",
        "unpack m.pgolf -o m.safetensors",
        "inspect m.pgolf --html m.html",
        "estimate ckpt.pt --budget 9kB",
        "export m.pgolf --script use.py -o out",
        "audit out",
        "oracle run.log",
        "triage out",
        f"sweep ckpt.pt {text} --methods rtn --bits 4 --calib none --jobs 1 -o s",
    ):
        run(command)
    assert {"tokenize", "train", "bench", "demo", "diff"} == COMMANDS.keys() - {
        "pack", "eval", "calibrate", "unpack", "inspect", "estimate", "export", "audit", "oracle", "sweep", "triage",
    }  # fmt: skip
