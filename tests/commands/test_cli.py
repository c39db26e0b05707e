import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pgolf.cli import COMMANDS, main
from pgolf.data.shards import write_shard
from tests.helpers import SHARED, TOY_MODEL, toy_state


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder: a checkpoint, its model, a token shard and byte counts for it."""
    monkeypatch.chdir(tmp_path)
    torch.save(toy_state(), "ckpt.pt")
    (tmp_path / "toy.py").write_text(TOY_MODEL)
    tokens = np.random.default_rng(0).integers(0, 64, 3000).astype(np.uint16)
    write_shard("val.bin", tokens)
    write_shard("bytes.bin", np.full(3000, 3, np.uint16))
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    if code:
        assert len(result.stderr.strip().splitlines()) == 1 or code == 2
    return result


def test_pack_inspect_unpack_eval(folder):
    out = run("pack", "ckpt.pt", "--budget", "9kB", "--method", "sdclip").stdout
    assert "tok_emb.weight" in out
    assert "headroom" in out
    assert "a vector" in out
    assert (folder / "ckpt.pgolf").stat().st_size <= 9000
    assert "tok_emb.weight" in run("inspect", "ckpt.pgolf").stdout
    assert json.loads(run("inspect", "ckpt.pgolf", "--json").stdout)["bytes"] <= 9000
    for name in ("out.safetensors", "out.pt"):
        run("unpack", "ckpt.pgolf", "-o", name)
        run("eval", name, "--model", "toy.py:Toy", "--data", "val.bin", "--bytes", "bytes.bin", "--seq-len", "64")
    scores = [
        json.loads(
            run(
                "eval", source, "--model", "toy.py:Toy", "--data", "val.bin", "--bytes", "bytes.bin",
                "--seq-len", "64", "--stride", "16", "--json",
            ).stdout
        )
        for source in ("ckpt.pt", "ckpt.pgolf")
    ]  # fmt: skip
    assert scores[0]["tokens"] == 2999
    assert scores[0]["bytes"] == 3 * 2999
    assert scores[0]["bpb"] == pytest.approx(scores[0]["loss"] / np.log(2) / 3)
    assert scores[0]["bpb"] != scores[1]["bpb"]


def test_json_report_is_the_only_output(folder):
    result = run("pack", "ckpt.pt", "--method", "rtn", "--set", "up.*=int4", "--json", "--report", "r.json")
    facts = json.loads(result.stdout)
    assert facts == json.loads((folder / "r.json").read_text())
    assert facts["artifact_bytes"] == (folder / "ckpt.pgolf").stat().st_size
    assert next(r for r in facts["rows"] if r["name"] == "up.weight")["method"] == "rtn int4"


def test_calibration_from_text_and_from_a_file_agree(folder):
    model = ("--model", "toy.py:Toy", "--calib", "val.bin", "--tokens", "2048")
    run("calibrate", "ckpt.pt", *model, "-o", "curv.safetensors")
    direct = run("pack", "ckpt.pt", *model, "--method", "gptq", "-o", "a.pgolf", "--json").stdout
    stored = run(
        "pack", "ckpt.pt", "--curvature", "curv.safetensors", "--method", "gptq", "-o", "b.pgolf", "--json"
    ).stdout
    assert json.loads(direct)["loss_rise"] == pytest.approx(json.loads(stored)["loss_rise"], rel=1e-4)
    assert all(r["loss_rise"] for r in json.loads(stored)["rows"] if r["name"].endswith("weight"))


@pytest.mark.parametrize("calib", ["self", "random"])
def test_calibration_needs_no_data(folder, calib):
    run("pack", "ckpt.pt", "--model", "toy.py:Toy", "--calib", calib, "--tokens", "1024", "--method", "gptq")


@pytest.mark.parametrize(
    ("method", "calib"), [("auto", "self"), ("gptq", "random"), ("sdclip", "none"), ("rtn", "none")]
)
def test_packing_twice_gives_the_same_bytes(folder, method, calib):
    how = ("--model", "toy.py:Toy", "--tokens", "256", "--method", method, "--calib", calib)
    for name in ("a", "b"):
        run("pack", "ckpt.pt", *how, "-o", f"{name}.pgolf")
    assert (folder / "a.pgolf").read_bytes() == (folder / "b.pgolf").read_bytes()


def test_nothing_is_overwritten_without_force(folder):
    (folder / "ckpt.pgolf").write_bytes(b"precious")
    assert "--force" in run("pack", "ckpt.pt", "--method", "rtn", code=2).stderr
    assert (folder / "ckpt.pgolf").read_bytes() == b"precious"
    run("pack", "ckpt.pt", "--method", "rtn", "--force")
    assert "--force" in run("unpack", "ckpt.pgolf", "-o", "ckpt.pt", code=2).stderr


def bad_shard(path, magic=20240520, version=1, count=10, tokens=10):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, count
    path.write_bytes(header.tobytes() + np.zeros(tokens, "<u2").tobytes())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("pack", "none.pt"), 3, "none.pt: no such file"),
        (("pack", "toy.py"), 3, "not a checkpoint"),
        (("pack", "nan.pt"), 3, "NaN in bad (1 of 1 values, the first at [0])"),
        (("pack", "ckpt.pt", "--budget", "200", "--method", "sdclip"), 4, "smallest reachable"),
        (("pack", "ckpt.pt", "--budget", "lots"), 2, "size 'lots'"),
        (("pack", "ckpt.pt", "--method", "magic"), 2, "unknown method"),
        (("pack", "ckpt.pt", "--set", "x=int6"), 2, "matches no tensor"),
        (("pack", "ckpt.pt", "--code", "none.py"), 2, "no such file"),
        (("pack", "ckpt.pt", "--calib", "val.bin"), 2, "--model"),
        (("pack", "ckpt.pt", "-o", "no/such/folder/x.pgolf"), 2, "does not exist"),
        (("pack", "ckpt.pt", "--curvature", "val.bin"), 3, "curvature"),
        (("pack", "ckpt.pt", "--model", "toy.py:Nope", "--method", "gptq"), 3, "modules there: Toy"),
        (("pack", "other.pt", "--model", "toy.py:Toy", "--method", "gptq"), 3, "unexpected other"),
        (("pack", "ckpt.pt", "--model", "toy.py:Toy", "--calib", "magic.bin", "--method", "gptq"), 3, "magic"),
        (("inspect", "toy.py"), 3, "not a pgolf artifact"),
        (("inspect", "cut.pgolf"), 3, "truncated or damaged"),
        (("unpack", "good.pgolf", "-o", "x.npz"), 2, ".safetensors, .pt or .gguf"),
        (("eval", "ckpt.pt", "--data", "val.bin", "--bytes", "bytes.bin"), 3, "--model"),
        (("eval", "ckpt.pt", "--model", "toy.py:Toy", "--data", "val.bin"), 2, "--tokenizer"),
        (("eval", "ckpt.pt", "--model", "toy.py:Toy", "--data", "magic.bin", "--bytes", "bytes.bin"), 3, "magic"),
        (("eval", "ckpt.pt", "--model", "toy.py:Toy", "--data", "short.bin", "--bytes", "bytes.bin"), 3, "short.bin"),
        (("eval", "ckpt.pt", "--model", "toy.py:Toy", "--data", "big.bin", "--bytes", "big.bin"), 3, "vocabulary"),
        (
            ("eval", "ckpt.pt", "--model", "toy.py:Toy", "--data", "val.bin", "--tokenizer", "toy.py"),
            3,
            "SentencePiece",
        ),
        (("eval", "good.pgolf", "--model", "toy.py:Toy", "--data", "val.bin", "--bytes", "big.bin"), 3, "big.bin"),
        (("calibrate", "ckpt.pt", "-o", "c.safetensors"), 3, "--model"),
        (("pack", "ckpt.pt", "--target-bpb-rise", "0.01"), 2, "--bytes-per-token"),
        (("pack", "ckpt.pt", "--target-bpb-rise", "0.01", "--bytes-per-token", "2"), 2, "needs curvature"),
    ],
)
def test_mistakes_get_one_line_and_an_exit_code(folder, arguments, code, message):
    torch.save({"bad": torch.tensor([float("nan")]), "ok": torch.ones(1)}, "nan.pt")
    torch.save(toy_state() | {"other": torch.ones(1)}, "other.pt")
    run("pack", "ckpt.pt", "--method", "rtn", "-o", "good.pgolf")
    (folder / "cut.pgolf").write_bytes((folder / "good.pgolf").read_bytes()[:-7])
    bad_shard(folder / "magic.bin", magic=7)
    bad_shard(folder / "short.bin", count=99)
    write_shard("big.bin", np.full(50, 999, np.uint16))
    before = sorted(p.name for p in folder.iterdir())
    result = run(*arguments, code=code)
    assert message in result.stderr
    assert result.stdout == "" or code == 2
    assert sorted(p.name for p in folder.iterdir() if p.name != "__pycache__") == [
        b for b in before if b != "__pycache__"
    ]


def test_it_runs_as_a_module():
    said = subprocess.run([sys.executable, "-m", "pgolf", "inspect"], check=False, capture_output=True, text=True)
    assert said.stderr == "pgolf: Missing argument 'ART': see pgolf inspect --help\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(command):
    assert "Example: pgolf" in run(command, "--help").stdout


def test_a_trained_checkpoint_packs_without_being_told_its_model(folder):
    (folder / "text.txt").write_text(
        "\n".join(f"{i} squared is {i * i}, said the {i % 17}th clerk." for i in range(4000))
    )
    run("tokenize", "text.txt", "-o", "data", "--vocab-size", "320")
    changes = ("--set", "steps=3", "--set", "batch_size=2", "--set", "seq_len=32", "--set", "vocab_size=320")
    facts = json.loads(run("train", "--data", "data", "-o", "run", *changes, "--json").stdout)
    assert facts["steps"] == 3
    run("pack", "run/checkpoint.pt", "--budget", "300kB", "--tokens", "256", "--calib", "random")
    shard = (
        "--data",
        "data/val_000000.bin",
        "--tokenizer",
        "data/tokenizer.model",
        "--seq-len",
        "32",
        "--max-tokens",
        "64",
    )
    assert json.loads(run("eval", "run/checkpoint.pgolf", *shard, "--json").stdout)["tokens"] == 64
    assert "--resume" in run("train", "--data", "data", "-o", "run", *changes, code=2).stderr


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_the_contests_packer_on_golf3m(tmp_path):
    """The figures of ../shared/data/README.md: 3.52 bits a weight."""
    golf = SHARED / "golf3m"
    result = run(
        "pack", golf / "ckpt.pt", "--model", f"{golf / 'model.py'}:GPT", "--calib", SHARED / "text_train_000000.bin",
        "--tokens", "4096", "--method", "gptq", "--set", "*=int6,k=12.85", "--set", "tok_emb.*=int8,k=20",
        "--coder", "brotli", "-o", tmp_path / "contest.pgolf", "--json",
    )  # fmt: skip
    assert json.loads(result.stdout)["bits_per_weight"] == pytest.approx(3.52, abs=0.02)


def test_a_log_shows_that_work_goes_on(folder, monkeypatch):
    """Without a terminal there are no bars, but a line now and then."""
    monkeypatch.setattr("pgolf.commands.shared.LINE_SECONDS", 0)
    result = run("pack", "ckpt.pt", "--budget", "9kB", "--method", "sdclip", "--json")
    assert "fill the budget: " in result.stderr
    json.loads(result.stdout)
