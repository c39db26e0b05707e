"""What a stranger types: right results, or one line with the documented exit code; nothing lost, nothing half-written."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import pgolf
from pgolf.cli import main
from pgolf.data.shards import write_shard
from tests.helpers import generator
from tests.zoo import animals
from tests.zoo.animals import plain

STATE = plain()
MODEL = ("--model", "zoo.py:GPT")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo.py").write_text(animals.MODEL)
    torch.save(STATE, "c.pt")
    write_shard(tmp_path / "t.bin", tokens())
    write_shard(tmp_path / "t_bytes.bin", np.full(600, 3))
    return tmp_path


def tokens():
    return np.arange(600) * 7 % 64


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    if code:
        assert result.stderr.count("\n") == 1, result.stderr
    return result


def everything(folder):
    """Path -> content of every file, and None for every folder."""
    return {
        p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*")) if "__pycache__" not in p.parts
    }


def artifact(name="a.pgolf"):
    pgolf.pack(STATE, name, budget="30kB")


# ---- nothing that a command reads is written over

ONTO_INPUTS = {
    "the checkpoint": ("pack", "c.pt", "--calib", "none", "-o", "c.pt", "--force"),
    "by another name of it": ("pack", "c.pt", "--calib", "none", "-o", "sub/../c.pt", "--force"),
    "the report": ("pack", "c.pt", "--calib", "none", "-o", "n.pgolf", "--report", "c.pt"),
    "the artifact": ("pack", "c.pt", "--calib", "none", "-o", "n.pgolf", "--report", "n.pgolf"),
    "the model's file": ("pack", "c.pt", *MODEL, "-o", "zoo.py", "--force"),
    "the text": ("pack", "c.pt", *MODEL, "--calib", "t.bin", "-o", "t.bin", "--force"),
    "the code": ("pack", "c.pt", "--code", "zoo.py", "--budget", "1MB", "-o", "zoo.py", "--force"),
    "what is calibrated": ("calibrate", "c.pt", *MODEL, "-o", "c.pt", "--force"),
    "what is scored": ("eval", "c.pt", *MODEL, "--data", "t.bin", "-o", "c.pt"),
    "what it is scored on": ("eval", "c.pt", *MODEL, "--data", "t.bin", "-o", "t.bin"),
    "what is looked into": ("inspect", "a.pgolf", "--html", "a.pgolf", "--force"),
    "what is unpacked": ("unpack", "a.pgolf", "-o", "a.pgolf", "--format", "pt", "--force"),
}


@pytest.mark.parametrize("kind", ONTO_INPUTS)
def test_what_a_command_reads_is_not_written_over(kind, folder):
    artifact()
    (folder / "sub").mkdir()
    before = everything(folder)
    run(*ONTO_INPUTS[kind], code=2)
    assert everything(folder) == before


def test_nor_by_pack_from_python(folder):
    with pytest.raises(pgolf.errors.UsageError, match="the checkpoint itself"):
        pgolf.pack("c.pt", "./c.pt", budget="30kB")


def test_a_hard_link_is_the_same_file(folder):
    os.link("c.pt", "other.pgolf")
    assert "reads, or writes already" in run("pack", "c.pt", "-o", "other.pgolf", "--force", code=2).stderr
    assert torch.load("c.pt").keys() == STATE.keys()


def test_a_folder_is_not_unpacked_onto_itself(folder):
    artifact()
    (folder / "hf").mkdir()
    (folder / "hf" / "model-00001-of-00001.safetensors").write_bytes(b"weights")
    assert "would be lost" in run("unpack", "a.pgolf", "-o", "hf", "--like", "hf", "--force", code=2).stderr
    assert (folder / "hf" / "model-00001-of-00001.safetensors").read_bytes() == b"weights"


# ---- arguments

WRONG = {
    "no arguments": ("pack", "Missing argument 'CKPT'"),
    "one too many": ("pack c.pt c.pt", "unexpected extra argument"),
    "a slip": ("pack c.pt --bugdet 1MB", "'--budget'"),
    "no such command": ("pakc c.pt", "No such command 'pakc'"),
    "no number": ("pack c.pt --bits x", "'--bits'"),
    "out of range": ("eval c.pt --stride 0", "'--stride'"),
    "no such choice": ("pack c.pt --coder x", "'rans', 'brotli'"),
    "standard output": ("pack c.pt -o -", "name the file to write"),
    "nothing to calibrate on": ("calibrate c.pt --model zoo.py:GPT --calib none -o k", "--calib none leaves nothing"),
    "nothing of that name": ("pack c.pt --state ema", "there are: ."),
    "a buffer that is none": ("estimate c.pt --drop *.gain --model zoo.py:GPT", "name buffers only"),
    "a file for a folder": ("tokenize zoo.py -o c.pt", "names the folder"),
    "a file for a run": ("train --data . -o c.pt", "names the folder"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_argument_is_one_line(kind, folder):
    line, says = WRONG[kind]
    before = everything(folder)
    result = CliRunner().invoke(main, line.split())
    assert result.exit_code in (2, 3)
    assert result.stderr.count("\n") == 1
    assert says in result.stderr
    assert everything(folder) == before


@pytest.mark.parametrize("command", ["pack", "eval", "inspect", "sweep", "train", "unpack", "diff", "audit"])
def test_help_helps(command):
    assert "Example: pgolf" in run(command, "--help").stdout


FAILING = {
    "no data": ("train", "--data", "no", "-o", "run"),
    "no shards": ("train", "--data", "empty", "-o", "run"),
    "too small a text": ("tokenize", "zoo.py", "-o", "shards"),
    "a sweep of a model that fails": ("sweep", "c.pt", "--model", "bad.py:Bad", "--data", "t.bin", "--seq-len", 8, "--bits", 4,
                                      "--methods", "rtn", "--baseline", "none", "--calib", "none", "--jobs", 1, "-o", "s"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAILING)
def test_what_fails_leaves_no_folder(kind, folder):
    (folder / "empty").mkdir()
    failing = "\nclass Bad(GPT):\n    def forward(self, ids):\n        raise ValueError('no')\n"
    (folder / "bad.py").write_text(animals.MODEL + failing)
    before = everything(folder)
    result = CliRunner().invoke(main, [str(a) for a in FAILING[kind]])
    assert result.exit_code in (2, 3), result.output
    assert everything(folder) == before


def test_an_estimate_leaves_out_what_pack_leaves_out(folder):
    torch.save(animals.made("Masked").state_dict(), "m.pt")
    masked = ("m.pt", "--model", "zoo.py:Masked", "--method", "keep", "--drop", "mask", "--json")
    foreseen = json.loads(run("estimate", *masked).stdout)
    packed = json.loads(run("pack", *masked, "--calib", "none", "-o", "m.pgolf").stdout)
    assert foreseen["num_bytes"] == packed["artifact_bytes"]
    loaded = pgolf.load("m.pgolf")
    assert "mask" not in loaded
    assert "cos" in loaded


# ---- streams

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_closed_stream_stops_nothing(name, folder, monkeypatch):
    monkeypatch.setattr(sys, name, None)
    assert main(["pack", "c.pt", "--budget", "30kB", "-o", "b.pgolf"], standalone_mode=False) in (None, 0)
    getattr(sys, name).close()
    assert pgolf.load("b.pgolf").keys() == STATE.keys()


@pytest.mark.skipif(os.name == "nt", reason="a line of sh")
def test_a_reader_that_has_seen_enough_and_a_terminal_of_few_letters(folder):
    artifact()
    line = f"({sys.executable} -m pgolf inspect a.pgolf; echo $? > code) | head -1"
    said = subprocess.run(["/bin/sh", "-c", line], env=ENVIRONMENT | ASCII, capture_output=True, check=False)
    assert (folder / "code").read_text() == "0\n", said.stderr
    assert not said.stderr
    assert said.stdout.count(b"\n") == 1


@pytest.mark.parametrize(
    "command", [["inspect", "a.pgolf"], ["inspect", "a.pgolf", "--json"], ["diff", "a.pgolf", "a.pgolf"]]
)
def test_a_reader_that_is_gone_before_the_first_line(command, folder):
    artifact()
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "pgolf", *command]
    said = subprocess.run(words, env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (said.returncode, said.stderr) == (0, b"")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes there")
def test_a_name_that_is_no_text(folder):
    name = os.fsdecode(b"\xe6\xff.pt")
    os.rename("c.pt", name)
    run("pack", name, "--budget", "30kB", "-o", "b.pgolf")
    assert pgolf.load("b.pgolf").keys() == STATE.keys()
    assert "\\udce6" in run("pack", name, "--state", "ema", code=2).stderr + run("pack", f"no{name}", code=3).stderr


def test_tables_are_as_narrow_as_they_must_be(tmp_path):
    from rich.console import Console

    from pgolf.loading import anatomy
    from pgolf.report import terminal

    state = {f"a.rather.long.name.of.a.module.{n}": t for n, t in STATE.items()}
    a, b = tmp_path / "a.pgolf", tmp_path / "b.pgolf"
    for path, budget in ((a, 30_000), (b, 12_000)):
        pgolf.pack(state, path, budget=budget)
    facts, change = anatomy.inspect(a), anatomy.diff(a, b)
    for width in (40, 80, 160):
        for table in (
            terminal.inspect_table(facts, width), terminal.layers_table(facts, width), terminal.diff_table(change, width)
        ):  # fmt: skip
            console = Console(width=width)
            with console.capture() as shown:
                console.print(table)
            lines = shown.get().splitlines()
            assert all(len(line) <= width for line in lines)
            assert len(lines) <= table.row_count + 3, "a row is one line"
            assert all(any(str(cell) in line for line in lines) for cell in table.columns[0]._cells)


# ---- texts and tokens

SHARDS = {
    "uint16 of numpy": lambda p: np.save(p, tokens().astype(np.uint16)),
    "int64 of numpy": lambda p: np.save(p, tokens()),
    "Llama 3's, of llm.c": lambda p: p.write_bytes(
        np.pad(np.array([20240801, 7, 600], "<i4"), (0, 253)).tobytes() + tokens().astype("<u4").tobytes()
    ),
    "ours, wide": lambda p: write_shard(p, tokens(), wide=True),
}


@pytest.mark.parametrize("kind", SHARDS)
def test_tokens_of_other_trainers(kind, folder):
    path = folder / ("x.npy" if "numpy" in kind else "x.bin")
    SHARDS[kind](path)
    for name, shard in (("a", path), ("b", "t.bin")):
        run("calibrate", "c.pt", *MODEL, "--calib", shard, "--tokens", 256, "-o", f"{name}.safetensors")
    assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()


NO_TOKENS = {
    "two dimensions": (lambda p: np.save(p, np.zeros((2, 9), int)), "whole numbers"),
    "floats": (lambda p: np.save(p, np.zeros(99)), "whole numbers"),
    "below zero": (lambda p: np.save(p, np.arange(-3, 90)), "0..4294967295"),
    "objects": (lambda p: np.save(p, np.array([{}], object), allow_pickle=True), "no array that numpy.load reads"),
    "cut short": (lambda p: p.write_bytes(b"\x93NUMPY\1"), "no array that numpy.load reads"),
    "beyond the model": (lambda p: np.save(p, np.full(99, 900)), "made by another tokenizer?"),
}


@pytest.mark.parametrize("kind", NO_TOKENS)
def test_arrays_that_are_no_tokens(kind, folder):
    make, says = NO_TOKENS[kind]
    make(folder / "x.npy")
    said = run("calibrate", "c.pt", *MODEL, "--calib", "x.npy", "-o", "k.safetensors", code=3).stderr
    assert says in said


TEXTS = {
    "empty.txt": (b"", "empty.txt: the text is empty"),
    "latin.txt": ("café".encode("latin1") * 9, "byte 3 (invalid continuation byte)"),
    "late.txt": (b"a" * (1 << 20) + "é".encode()[:1] + b"b" * 9, "byte 1,048,576 (invalid continuation byte)"),
    "across.txt": (b"a" * ((1 << 20) - 1) + "é".encode() + b"\xff", "byte 1,048,577 (invalid start byte)"),
    "ends.txt": (b"ab" + "é".encode()[:1], "it ends within a character, at byte 3"),
    "wide.txt": ("text".encode("utf-16"), "as UTF-16 does"),
    "packed.txt": (b"\x1f\x8b\x08\0\xff\xff", "binary, or compressed"),
    "chat.jsonl": (b'{"messages": [], "id": 3}\n', "its fields: 'messages', 'id'"),
    "other.jsonl": (b'{"content": "a", "id": 3}\n', "rename 'content' to 'text'"),
    "nothing.jsonl": (b"\n\n", "nothing.jsonl: the text is empty"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_cannot_be_read_say_where(name, tmp_path):
    from pgolf.data.text import documents
    from pgolf.errors import DataError

    data, says = TEXTS[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as told:
        list(documents([tmp_path / name]))
    assert says in str(told.value)
    assert name in str(told.value)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_is_no_text(name, tmp_path):
    from pgolf.data.text import documents

    data = b'{"text": "hello"}\r\n' if name == "a.jsonl" else b"hello"
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data)
    assert "".join(documents([tmp_path / name])) == "hello"


# ---- files that are no checkpoints


def archived(inner):
    import io
    import zipfile

    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(inner, b"x" * 40)
    return held.getvalue()


FOREIGN = {
    "a.txt": (b"epoch 3\nloss 2.1\n" * 20, "is text, not a checkpoint"),
    "a.pt.gz": (b"\x1f\x8b\x08" + bytes(range(64)), "is compressed"),
    "a.pt.zst": (b"\x28\xb5\x2f\xfd" + bytes(range(64)), "is compressed"),
    "a.pkl": (b"\x80\x04\x95\x10\0\0\0" + bytes(range(64)), "is a plain pickle"),
    "a.parquet": (b"PAR1" + bytes(range(64)), "is a table of text"),
    "zeros.pt": (b"\0" * 4096, "begins with 512 zeros"),
    "cut.pt": (b"PK\3\4" + bytes(range(64)), "truncated"),
    "a.tar": (b"c.pt" + b"\0" * 253 + b"ustar" + b"\1" * 400, "is a tar archive"),
    "a.zip": (archived("run/c.pt"), "is a zip archive that holds run/c.pt"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_that_people_take_for_checkpoints(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, says = FOREIGN[name]
    (tmp_path / name).write_bytes(data)
    assert says in run("pack", name, "-o", "o.pgolf", code=3).stderr


def test_a_model_that_is_called_like_an_optimizer(folder):
    torch.save({"opt": STATE, "step": 3}, "c.pt")
    assert "if opt is the model after all, --state opt" in run("pack", "c.pt", code=3).stderr
    run("pack", "c.pt", "--state", "opt", "--budget", "30kB", "-o", "o.pgolf")
    assert pgolf.load("o.pgolf").keys() == STATE.keys()


def test_parts_of_one_model_are_taken_together(folder):
    torch.save({"encoder": {"w": torch.randn(64, 64)}, "decoder": {"w": torch.randn(64, 64)}}, "c.pt")
    assert "--state . for all of them" in run("pack", "c.pt", code=3).stderr
    run("pack", "c.pt", "--state", ".", "--budget", "30kB", "-o", "o.pgolf")
    assert pgolf.load("o.pgolf").keys() == {"encoder.w", "decoder.w"}


# ---- a budget with room for everything


@pytest.mark.parametrize("size", [32, 33, 257])
def test_room_enough_leaves_vectors_as_they_are(size, tmp_path):
    """Rows of one weight share a step: the finest one reached the end of the codes, and the largest weights were cut."""
    g = generator()
    module = torch.nn.Sequential(torch.nn.Embedding(64, size), torch.nn.Linear(size, size), torch.nn.Linear(size, 64))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.2)
    curvature = pgolf.calibrate(module, torch.randint(0, 64, (8, 32), generator=g))
    exact = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    report = pgolf.pack(
        module, tmp_path / "m.pgolf", budget=8 * sum(map(torch.numel, exact.values())), curvature=curvature
    )
    assert {row.name for row in report.rows if not row.kept} >= {"1.bias", "2.bias"}, "they are coded, not kept"
    for name, tensor in pgolf.load(tmp_path / "m.pgolf").items():
        assert (tensor - exact[name]).abs().max() <= 1e-4 * exact[name].abs().max(), name
