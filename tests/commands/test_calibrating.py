"""Calibrating and scoring on the command line: the context, the shard and the report of what was really read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pgolf.cli import main
from pgolf.commands.models import power_of_two_near
from pgolf.data.shards import write_shard
from pgolf.quant.curvature import collect
from pgolf.quant.curvature.store import Curvature

NANO = """
import torch, torch.nn as nn, torch.nn.functional as F

class GPT(nn.Module):
    block, vocab = 40, 64

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(self.vocab, 48), nn.Embedding(self.block, 48)
        self.up, self.head = nn.Linear(48, 48), nn.Linear(48, self.vocab, bias=False)

    def forward(self, idx, targets=None):
        t = idx.shape[1]
        assert t <= self.block, f"Cannot forward sequence of length {t}, block size is only {self.block}"
        x = self.wte(idx) + self.wpe(torch.arange(t))
        x = x + self.up(x).relu()
        if targets is None:
            return self.head(x[:, [-1], :]), None
        logits = self.head(x)
        return logits, F.cross_entropy(logits.view(-1, self.vocab), targets.view(-1), ignore_index=-1)

class Wide(GPT):
    vocab = 70_000
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nano.py").write_text(NANO)
    names: dict[str, type[torch.nn.Module]] = {}
    exec(NANO, names)
    for name in ("GPT", "Wide"):
        torch.save(names[name]().state_dict(), tmp_path / f"{name}.pt")
    rng = np.random.default_rng(0)
    write_shard(tmp_path / "val.bin", rng.integers(0, 64, 3000).astype(np.uint16))
    write_shard(tmp_path / "wide.bin", rng.integers(0, 70_000, 600), wide=True)
    for name, size in (("val_bytes", 3000), ("wide_bytes", 600)):
        write_shard(tmp_path / f"{name}.bin", np.full(size, 3, np.uint16))
    return tmp_path


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, [a.replace("DIR", str(folder)) for a in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("text", ["DIR/val.bin", "self", "random"])
def test_a_short_context(folder: Path, text: str) -> None:
    common = ["DIR/GPT.pt", "--model", "DIR/nano.py:GPT", "--calib", text, "--json"]
    facts = json.loads(run(folder, "calibrate", *common, "-o", "DIR/c.s", "--tokens", "800"))
    assert facts["tokens"] == 800 // 40 * 40
    assert facts["notes"] == ["calibrated in sequences of 40 tokens, the most up to 1024 that the model takes"]
    packed = json.loads(run(folder, "pack", *common, "-o", "DIR/o.pgolf", "--tokens", "800", "--budget", "12kB"))
    assert facts["notes"][0] in packed["notes"]


@pytest.mark.parametrize(("tokens", "read"), [(1, 1), (2, 2), (3, 3), (50, 40), (90, 80)])
def test_text_of_its_own_fills_the_context(folder: Path, tokens: int, read: int) -> None:
    common = ["DIR/GPT.pt", "--model", "DIR/nano.py:GPT", "--calib", "self", "--json"]
    facts = json.loads(run(folder, "calibrate", *common, "-o", "DIR/c.s", "--tokens", str(tokens)))
    assert facts["tokens"] == read
    reached = Curvature.load(folder / "c.s")
    positions = next(key for key, sums in reached.sums.items() if reached.shapes[key.name][0] == 40)
    assert int((reached.sums[positions].rows > 0).sum()) == min(read, 40)


def test_eval_takes_the_models_context(folder: Path) -> None:
    common = ["eval", "DIR/GPT.pt", "--model", "DIR/nano.py:GPT", "--data", "DIR/val.bin"]
    assert "windows of 40, stride 40" in run(folder, *common)
    assert "windows of 16, stride 16" in run(folder, *common, "--seq-len", "16")
    assert "block size is only 40" in run(folder, *common, "--seq-len", "64", code=3)


def test_a_vocabulary_over_65536(folder: Path) -> None:
    common = ["DIR/Wide.pt", "--model", "DIR/nano.py:Wide"]
    facts = json.loads(run(folder, "calibrate", *common, "--calib", "DIR/wide.bin", "-o", "DIR/c.s", "--json"))
    assert facts["tokens"] == 600
    score = json.loads(run(folder, "eval", *common, "--data", "DIR/wide.bin", "--json"))
    assert score["tokens"] == 599


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_shard_of_hardly_any_tokens(folder: Path, count: int) -> None:
    write_shard(folder / "few.bin", np.zeros(count, np.uint16))
    out = run(
        folder,
        "calibrate",
        "DIR/GPT.pt",
        "--model",
        "DIR/nano.py:GPT",
        "--calib",
        "DIR/few.bin",
        "-o",
        "DIR/c.s",
        code=3,
    )
    assert f"holds {count} tokens: at least 16 are needed to calibrate on" in out


def test_a_short_shard_is_not_read_twice(folder: Path) -> None:
    write_shard(folder / "few.bin", np.arange(50, dtype=np.uint16))
    options = ["--calib", "DIR/few.bin", "-o", "DIR/c.s", "--json", "--seq-len", "20"]
    facts = json.loads(run(folder, "calibrate", "DIR/GPT.pt", "--model", "DIR/nano.py:GPT", *options))
    assert facts["tokens"] == 40


@pytest.mark.parametrize(("measured", "trained"), [(384, 512), (512, 512), (640, 512), (768, 1024), (8, 8), (1, 1)])
def test_a_measured_context_stands_for_the_power_of_two_beside_it(measured, trained):
    assert power_of_two_near(measured) == trained


def test_what_is_packed_is_measured_on_text_held_back(folder: Path) -> None:
    common = ["pack", "DIR/GPT.pt", "--model", "DIR/nano.py:GPT", "-o", "DIR/o.pgolf", "--tokens", "800", "--force"]
    common += ["--budget", "9kB", "--calib", "DIR/val.bin"]
    facts = json.loads(run(folder, *common, "--json"))
    assert facts["tuned"] is None
    assert 1000 <= facts["measured"]["tokens"] <= 2200
    assert 0 < facts["measured"]["kl"] < 1
    told = run(folder, *common)
    assert f"measured KL        {facts['measured']['kl']:.5f}" in told
    assert "nats per token" in told
    assert json.loads(run(folder, *common, "--json", "--no-measure"))["measured"] is None
    run(
        folder,
        "calibrate",
        "DIR/GPT.pt",
        "--model",
        "DIR/nano.py:GPT",
        "--calib",
        "DIR/val.bin",
        "-o",
        "DIR/c.s",
        "--tokens",
        "800",
    )
    again = json.loads(run(folder, *common, "--curvature", "DIR/c.s", "--json"))
    assert (again["measured"], again["artifact_bytes"]) == (facts["measured"], facts["artifact_bytes"])


@pytest.mark.parametrize("text", ["DIR/val.bin", "self"])
def test_tuning(folder: Path, text: str) -> None:
    common = ["pack", "DIR/GPT.pt", "--model", "DIR/nano.py:GPT", "-o", "DIR/o.pgolf", "--tokens", "800", "--force"]
    common += ["--budget", "9kB", "--calib", text]
    facts = json.loads(run(folder, *common, "--tune", "12k", "--json"))
    assert 8000 <= facts["tuned"]["tokens"] <= 12_000
    assert facts["tuned"]["kl"] == pytest.approx(facts["measured"]["kl"])
    assert facts["tuned"]["kl"] <= facts["tuned"]["kl_before"]
    assert facts["headroom"] >= 0
    assert "tuned              on " in run(folder, *common, "--tune", "2k")


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--calib", "none"], 2, "--tune needs a model and text"),
        (["--calib", "random"], 2, "random tokens would ruin"),
        (["--calib", "DIR/val.bin", "--tune", "lots"], 2, "--tune lots"),
        (["--calib", "DIR/val.bin", "--tokens", "3000"], 2, "too few tokens"),
        (["--calib", "DIR/val.bin", "--max-kl", "0.1"], 2, "--max-kl and tune exclude each other"),
    ],
)
def test_what_cannot_be_tuned(
    folder: Path, more: list[str], code: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "calibrate", lambda *_, **__: pytest.fail("calibrated before it was said"))
    common = [
        "pack",
        "DIR/GPT.pt",
        "--model",
        "DIR/nano.py:GPT",
        "-o",
        "DIR/o.pgolf",
        "--tune",
        "8k",
    ]
    more = more if "--max-kl" in more else [*more, "--budget", "9kB"]
    assert says in run(folder, *common, *more, code=code)
    assert not (folder / "o.pgolf").exists()


PACK = ["pack", "DIR/GPT.pt", "--model", "DIR/nano.py:GPT", "-o", "DIR/o.pgolf", "--tokens", "800", "--force"]


@pytest.mark.parametrize("text", ["DIR/val.bin", "self"])
def test_a_largest_kl(folder: Path, text: str) -> None:
    facts = json.loads(run(folder, *PACK, "--calib", text, "--max-kl", "0.01", "--method", "rtn", "--json"))
    assert facts["asked"]["found"] == facts["measured"]["kl"] <= 0.01
    said = run(folder, *PACK, "--calib", text, "--max-rise", "0.05", "--method", "rtn")
    assert "asked for          a measured rise of 0.05 at most" in said


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--calib", "none", "--max-kl", "0.1"], 2, "--max-kl needs a model and text to measure on"),
        (["--calib", "random", "--max-rise", "0.1"], 2, "--max-rise needs a model and text to measure on"),
        (["--calib", "DIR/val.bin", "--tokens", "3000", "--max-kl", "0.1"], 2, "a --calib longer than --tokens"),
        (["--calib", "DIR/val.bin", "--max-kl", "0.1", "--no-measure"], 2, "leave --no-measure out"),
        (["--calib", "DIR/val.bin", "--max-kl", "0.1", "--budget", "9kB"], 2, "not both"),
        (["--calib", "DIR/val.bin", "--max-kl", "0.1", "--deadline", "9"], 2, "exclude each other"),
        (["--calib", "DIR/val.bin", "--max-kl", "1e-9", "--method", "rtn"], 4, "out of reach"),
        (["--calib", "DIR/val.bin", "--bits", "33"], 2, "'--bits'"),
    ],
)
def test_what_cannot_be_kept_near(folder: Path, more: list[str], code: int, says: str) -> None:
    assert says in run(folder, *PACK, *more, code=code)
    assert not (folder / "o.pgolf").exists()
