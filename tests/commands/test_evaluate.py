"""`pgolf eval` as a user types it: results, comparison, test-time training, audit and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pgolf.cli import main
from pgolf.data.shards import write_shard
from pgolf.scoring import ttt
from tests.helpers import TOY_MODEL, toy_state

BOS = 1
MODEL = ("--model", "toy.py:Toy")
DATA = ("--data", "val.bin", "--bytes", "bytes.bin", "--seq-len", "64")
LEARN = ("--ttt", "--ttt-chunk", "32", "--ttt-rank", "2", "--ttt-lr", "0.01")
CHEATS = '''
import numpy as np, torch
from toy import Toy

class Peek(Toy):
    """Adds the token to predict to its logits."""
    def forward_logits(self, ids):
        seen = torch.zeros(*ids.shape, 64)
        seen[:, :-1].scatter_(2, ids[:, 1:, None], 5.0)
        return super().forward_logits(ids) / 48 + seen

def unnormalised(model):
    """Half a bit better than the model."""
    def score(tokens):
        ids = torch.from_numpy(tokens)[None]
        with torch.no_grad():
            logits = model.forward_logits(ids[:, :-1])
        return torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="none").numpy() - 0.35
    return score

def short(model):
    return lambda tokens: np.zeros(3)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a checkpoint, its model, a shard of ten documents, byte counts, and ways to cheat."""
    monkeypatch.chdir(tmp_path)
    torch.save(toy_state(), "ckpt.pt")
    (tmp_path / "toy.py").write_text(TOY_MODEL)
    (tmp_path / "cheats.py").write_text(CHEATS)
    tokens = np.random.default_rng(0).integers(2, 64, 1000).astype(np.uint16)
    tokens[::100] = BOS
    write_shard("val.bin", tokens)
    write_shard("bytes.bin", np.where(tokens == BOS, 0, 3).astype(np.uint16))
    return tmp_path


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    if code:
        *notes, error = result.stderr.splitlines()
        assert error.startswith("pgolf: ")
        assert all(note.startswith("note: ") for note in notes)
    return result


def test_a_saved_result_holds_every_document(folder: Path):
    printed = json.loads(run("eval", "ckpt.pt", *MODEL, *DATA, "-o", "r.json", "--json").stdout)
    saved = json.loads((folder / "r.json").read_text())
    columns = saved.pop("per_document")
    assert saved == printed
    assert printed["documents"] == 10
    assert columns["tokens"] == [100] * 9 + [99]
    assert sum(columns["bytes"]) == printed["bytes"]
    assert sum(columns["nats"]) / np.log(2) / printed["bytes"] == pytest.approx(printed["bpb"])
    assert printed["low"] < printed["bpb"] < printed["high"]


def test_two_models_are_compared_over_documents(folder: Path):
    run("pack", "ckpt.pt", "--method", "rtn", "--set", "*=int3")
    both = json.loads(run("eval", "ckpt.pt", "ckpt.pgolf", *MODEL, *DATA, "--json").stdout)
    change = both["difference"]
    assert change["value"] == pytest.approx(both["b"]["bpb"] - both["a"]["bpb"])
    assert change["standard_error"] > 0
    assert change["documents"] == 10
    for source, name in (("ckpt.pt", "a.json"), ("ckpt.pgolf", "b.json")):
        run("eval", source, *MODEL, *DATA, "-o", name)
    again = json.loads(run("eval", "a.json", "b.json", "--json").stdout)
    assert again["difference"] == pytest.approx(change)
    text = run("eval", "a.json", "b.json").stdout
    assert "difference B - A" in text
    assert "10 documents" in text


def test_a_context_that_harms_is_noted(folder: Path):
    """A model that is lost beyond 16 tokens."""
    (folder / "lost.py").write_text(
        "from toy import Toy\n"
        "class Lost(Toy):\n"
        "    def forward_logits(self, ids):\n"
        "        x = super().forward_logits(ids) / 48\n"
        "        x[:, 16:] += 3 * self.tok_emb.weight[:, 0]\n"
        "        return x\n"
    )
    note = "try --seq-len 16"
    assert note in run("eval", "ckpt.pt", "--model", "lost.py:Lost", *DATA).stderr
    assert note in json.loads(run("eval", "ckpt.pt", "--model", "lost.py:Lost", *DATA, "--json").stdout)["note"]
    assert "note" not in run("eval", "ckpt.pt", "--model", "lost.py:Lost", *DATA, "--seq-len", "16").stderr


def test_contexts_within_documents(folder: Path):
    """The toy sees one token at a time, so where contexts begin makes no difference to it."""
    scores = [
        json.loads(run("eval", "ckpt.pt", *MODEL, *DATA, *more, "--json").stdout) for more in ((), ("--documents",))
    ]
    assert scores[0]["bpb"] == pytest.approx(scores[1]["bpb"])
    assert "within documents" in scores[1]["how"]


@pytest.mark.parametrize("source", ["ckpt.pt", "ckpt.pgolf"])
def test_test_time_training_on_checkpoints_and_artifacts(folder: Path, source: str):
    run("pack", "ckpt.pt", "--method", "rtn")
    plain, learned = (
        json.loads(run("eval", source, *MODEL, *DATA, *more, "--json").stdout) for more in (("--documents",), LEARN)
    )
    assert learned["tokens"] == plain["tokens"]
    assert learned["bpb"] < plain["bpb"]
    assert "rank 2, chunk 32, learning rate 0.01" in learned["how"]


def test_help_tells_the_defaults_of_test_time_training():
    text = " ".join(run("eval", "--help").stdout.split())
    defaults = ttt.TTTSettings()
    for name in ("rank", "chunk", "lr"):
        option = text[text.index(f"--ttt-{name}") :]
        assert f"[default: {getattr(defaults, name)}]" in option[: option.index("]") + 1]


@pytest.mark.parametrize("more", [(), ("--stride", "16"), ("--documents",), LEARN])
def test_the_audit_passes_an_honest_model(folder: Path, more: tuple[str, ...]):
    run("pack", "ckpt.pt", "--method", "rtn")
    facts = json.loads(run("eval", "ckpt.pgolf", *MODEL, *DATA, *more, "--audit", "--json").stdout)
    found = {check["name"]: check["passed"] for check in facts["audit"]}
    passed = ("probabilities", "future", "memory", "documents", "run", "size")
    assert found == {**dict.fromkeys(passed, True), "bytes": None}


@pytest.mark.parametrize(
    ("more", "failing"),
    [
        (("--model", "cheats.py:Peek"), "probabilities, run"),
        ((*MODEL, "--scorer", "cheats.py:unnormalised"), "probabilities"),
        ((*MODEL, "--budget", "1kB"), "size"),
        ((*MODEL, "--budget", "16MB", "--code", "toy.py"), None),
    ],
)
def test_the_audit_fails_with_exit_code_4(folder: Path, more: tuple[str, ...], failing: str | None):
    run("pack", "ckpt.pt", "--method", "rtn")
    result = run("eval", "ckpt.pgolf", *DATA, *more, "--audit", code=4 if failing else 0)
    assert ("FAIL" in result.stdout) is bool(failing)
    if failing:
        assert result.stderr.endswith(f"pgolf: the audit fails: {failing}\n")
        assert all(f"FAIL  {name}" in result.stdout for name in failing.split(", "))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("ckpt.pt", *MODEL), 2, "--data"),
        (("ckpt.pt", "ckpt.pt", "ckpt.pt", *MODEL, *DATA), 2, "one model or two, not 3"),
        (("ckpt.pt", *MODEL, *DATA, "--ttt-rank", "4"), 2, "--ttt-rank needs --ttt"),
        (("ckpt.pt", *MODEL, *DATA, "--ttt", "--stride", "8"), 2, "--ttt-chunk"),
        (("ckpt.pt", *MODEL, *DATA, "--ttt", "--ttt-chunk", "65"), 2, "must fit the sequence length 64"),
        (("ckpt.pt", *MODEL, *DATA, "--documents", "--bos", "63000"), 3, "no document start (token 63000)"),
        (("ckpt.pt", *MODEL, *DATA, "--scorer", "cheats.py:short"), 3, "wanted 999 finite nats"),
        (("ckpt.pt", *MODEL, *DATA, "--scorer", "cheats.py:none"), 3, "no function 'none'"),
        (("ckpt.pt", *MODEL, *DATA, "--scorer", "cheats.py"), 2, "--scorer 'cheats.py': write FILE.py:NAME"),
        (("ckpt.pt", *MODEL, *DATA, "--audit", "--max-tokens", "5"), 3, "too few for an audit"),
        (("r.json", "--audit"), 2, "needs the model"),
        (("r.json",), 3, "not a result"),
        (("none.json",), 3, "No such file"),
    ],
)
def test_mistakes_get_one_line_and_an_exit_code(folder: Path, arguments: tuple[str, ...], code: int, message: str):
    (folder / "r.json").write_text('{"bpb": 1}')
    assert message in run("eval", *arguments, code=code).stderr


def test_against_the_unquantized_model(folder: Path):
    """No bytes are needed: neither --tokenizer nor --bytes."""
    state = toy_state()
    state["tok_emb.weight"] *= 0.2  # logits of a trained model's size
    torch.save(state, "ckpt.pt")
    text = (*MODEL, "--data", "val.bin", "--seq-len", "64", "--against", "ckpt.pt", "--json")
    for name, bits in (("small", 3), ("large", 6)):
        run("pack", "ckpt.pt", "--method", "rtn", "--set", f"*=int{bits}", "-o", f"{name}.pgolf")
    (folder / "bytes.bin").unlink()
    one = json.loads(run("eval", "small.pgolf", *text).stdout)
    assert one["bytes"] == (folder / "small.pgolf").stat().st_size
    assert one["kl"] > 0.001
    assert one["tokens"] == 999
    both = json.loads(run("eval", "small.pgolf", "large.pgolf", *text, "-o", "kl.json").stdout)
    assert both["a"]["kl"] == pytest.approx(one["kl"])
    assert both["difference"]["value"] == pytest.approx(both["b"]["kl"] - both["a"]["kl"])
    assert json.loads((folder / "kl.json").read_text())["a"] == both["a"]
    said = run("eval", "small.pgolf", "large.pgolf", *text[:-1]).stdout
    assert "difference B - A   KL -" in said
    assert f"bytes              {both['b']['bytes']:,}" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("ckpt.pt", "--audit"), "--against and --audit exclude each other"),
        (("ckpt.pt", "--ttt"), "--against and --ttt exclude each other"),
        (("r.json",), "needs the model, not its saved result"),
    ],
)
def test_what_does_not_go_with_a_kl(folder: Path, more: tuple[str, ...], message: str):
    assert message in run("eval", *more, *MODEL, *DATA, "--against", "ckpt.pt", code=2).stderr


def test_a_limit_of_time_is_an_exit_code(folder: Path):
    assert run("eval", "ckpt.pt", *MODEL, *DATA, "--time-limit", "600").stdout
    error = run("eval", "ckpt.pt", *MODEL, *DATA, "--time-limit", "1e-9", "-o", "r.json", code=4).stderr
    assert error.startswith("pgolf: scoring takes longer than 1e-09 s: ")
    assert not (folder / "r.json").exists()
    error = run("eval", "ckpt.pt", *MODEL, *DATA, "--against", "ckpt.pt", "--time-limit", "9", code=2).stderr
    assert "--against and --time-limit exclude each other" in error
