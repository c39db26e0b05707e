"""Byte sidecars are found by name, refused where they belong to another shard, and used wherever bytes are counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pgolf.cli import main
from pgolf.data import caseops, sidecar
from pgolf.data.corpus import BOS, find_data, tokenize
from pgolf.data.shards import read_shard, write_shard
from pgolf.data.tokenizers import load_tokenizer, stream_bytes, token_bytes
from pgolf.errors import DataError, UsageError

VOCAB = 400
LINES = [
    f"Line {i} of THE file: {i * i} ünïcode ✓ McDonald, ÉTÉ and {'NASA' * (i % 3)} Straße \ue001 {'x' * (i % 17)}"
    for i in range(1200)
]
TINY = (
    "vocab_size=400",
    "layers=1",
    "dim=32",
    "heads=2",
    "kv_heads=1",
    "mlp_mult=2",
    "steps=6",
    "batch_size=2",
    "seq_len=64",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text.txt, and data/ made of it with CaseOps by the command line."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_bytes("\n".join(LINES).encode())
    run("tokenize", folder / "text.txt", "--caseops", "--vocab-size", VOCAB, "-o", folder / "data")
    return folder


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


@pytest.mark.parametrize(
    ("shard", "expected"),
    [
        ("val_000000.bin", "val_bytes_000000.bin"),
        ("fineweb_val_000003.bin", "fineweb_val_bytes_000003.bin"),
        ("val.bin", "val_bytes.bin"),
        ("8k_val_2.bin", "8k_val_bytes_2.bin"),
    ],
)
def test_names_are_the_contests(shard: str, expected: str):
    path = sidecar.path_of(Path("dir") / shard)
    assert path == Path("dir") / expected
    assert sidecar.is_sidecar(path)
    assert not sidecar.is_sidecar(Path(shard))


def test_every_shard_has_its_bytes(corpus: Path):
    files = find_data(corpus / "data", VOCAB)
    assert [path.name for path in (*files.train, files.val)] == ["train_000000.bin", "val_000000.bin"]
    assert sorted(path.name for path in (corpus / "data").iterdir()) == [
        *("tokenizer.model", "train_000000.bin", "train_bytes_000000.bin", "val_000000.bin", "val_bytes_000000.bin"),
    ]
    processor = load_tokenizer(files.tokenizer)
    texts, counted = [], 0
    for path in (*files.train, files.val):
        tokens = read_shard(path)
        counts = sidecar.byte_counts(path, tokens)
        starts = np.flatnonzero(tokens == BOS)
        for first, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
            texts.append(caseops.text_of(processor, tokens[first:end].tolist()))
            assert counts[first:end].sum() == len(texts[-1].encode())
        counted += int(counts.sum())
        assert (counts[tokens == BOS] == 0).all()
    assert counted == (corpus / "text.txt").stat().st_size
    assert sorted("".join(texts).replace("\n", "")) == sorted("".join(LINES))


def test_several_shards_have_one_each(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pgolf.data.corpus.SHARD_TOKENS", 20_000)
    files = tokenize([corpus / "text.txt"], tmp_path, vocab_size=VOCAB, with_caseops=True)
    assert len(files.train) > 1
    for path in (*files.train, files.val):
        tokens = read_shard(path)
        assert (sidecar.byte_counts(path, tokens) == stream_bytes(tokens, token_bytes(files.tokenizer))).all()


def test_a_folder_written_anew_keeps_no_sidecar_of_before(corpus: Path, tmp_path: Path):
    for with_caseops in (True, False):
        files = tokenize([corpus / "text.txt"], tmp_path, vocab_size=VOCAB, with_caseops=with_caseops)
        assert all(bool(sidecar.beside(path)) is with_caseops for path in (*files.train, files.val))


def test_counts_that_are_not_the_texts_are_never_written(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pgolf.data.caseops.count_escaped", lambda *_: None)
    with pytest.raises(DataError, match="the tokenizer lost some"):
        tokenize([corpus / "text.txt"], tmp_path, vocab_size=VOCAB, with_caseops=True)
    assert not list(tmp_path.glob("*_bytes_*"))


def test_a_sidecar_must_fit_its_tokens(tmp_path: Path):
    write_shard(tmp_path / "bytes.bin", np.array([0, 3, 1]))
    assert sidecar.read(tmp_path / "bytes.bin", np.zeros(3, np.uint16)).tolist() == [0, 3, 1]
    with pytest.raises(DataError, match="byte counts of 3 tokens; the data has 4"):
        sidecar.read(tmp_path / "bytes.bin", np.zeros(4, np.uint16))
    (tmp_path / "short.bin").write_bytes((tmp_path / "bytes.bin").read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated"):
        sidecar.read(tmp_path / "short.bin", np.zeros(3, np.uint16))
    (tmp_path / "other.bin").write_bytes(b"\0" * 1030)
    with pytest.raises(DataError, match="not a token shard"):
        sidecar.read(tmp_path / "other.bin", np.zeros(3, np.uint16))


def test_another_shards_sidecar_of_the_same_length_is_refused(corpus: Path, tmp_path: Path):
    """Also one that is merely shifted, and the tokens themselves in the place of their bytes."""
    val, train = (read_shard(corpus / "data" / f"{name}_000000.bin") for name in ("val", "train"))
    counts = read_shard(corpus / "data" / "train_bytes_000000.bin")
    for wrong in (counts[: len(val)], np.roll(read_shard(corpus / "data" / "val_bytes_000000.bin"), 1)):
        write_shard(tmp_path / "wrong.bin", wrong)
        with pytest.raises(DataError, match=r"wrong\.bin is another shard's sidecar"):
            sidecar.read(tmp_path / "wrong.bin", val)
    write_shard(tmp_path / "right.bin", counts)
    assert (sidecar.read(tmp_path / "right.bin", train) == counts).all()


def test_what_counts(corpus: Path, tmp_path: Path):
    """A sidecar that is named, then the one beside the shard, then the tokenizer."""
    shard, tokenizer = tmp_path / "val.bin", corpus / "data" / "tokenizer.model"
    tokens = read_shard(corpus / "data" / "val_000000.bin")
    write_shard(shard, tokens)
    with pytest.raises(UsageError, match=r"there is no val_bytes\.bin beside"):
        sidecar.byte_counts(shard, tokens)
    by_pieces = sidecar.byte_counts(shard, tokens, tokenizer=tokenizer)
    assert (by_pieces == read_shard(corpus / "data" / "val_bytes_000000.bin")).all()
    write_shard(tmp_path / "val_bytes.bin", by_pieces + 1)
    write_shard(tmp_path / "named.bin", by_pieces + 2)
    assert (sidecar.byte_counts(shard, tokens, tokenizer=tokenizer) == by_pieces + 1).all()
    assert (sidecar.byte_counts(shard, tokens, sidecar=tmp_path / "named.bin") == by_pieces + 2).all()


@pytest.fixture(scope="module")
def trained(corpus: Path) -> Path:
    out = corpus / "run"
    sets = [word for item in TINY for word in ("--set", item)]
    run("train", "--data", corpus / "data", "-o", out, *sets)
    return out / "checkpoint.pt"


def test_train_eval_and_sweep_count_the_text(corpus: Path, trained: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pgolf.commands.sweep.MOST_JOBS", 1)
    val = corpus / "data" / "val_000000.bin"
    real = len(caseops.text_of(load_tokenizer(trained.with_name("tokenizer.model")), read_shard(val).tolist()).encode())
    score = json.loads((trained.with_name("train.json")).read_text())["score"]
    assert score["bytes"] == real
    options = ("--data", val, "--seq-len", "64")
    plain = json.loads(run("eval", trained, *options, "--json").stdout)
    assert plain["bytes"] == real
    assert plain["bpb"] == pytest.approx(score["bpb"], rel=1e-4)
    assert "bytes of val_bytes_000000.bin" in plain["how"]
    learned = run("eval", trained, *options, "--ttt", "--ttt-chunk", "32", "--max-tokens", "200", "--json")
    assert (
        json.loads(learned.stdout)["bytes"]
        == json.loads(run("eval", trained, *options, "--documents", "--max-tokens", "200", "--json").stdout)["bytes"]
    )
    sweep = run(
        *("sweep", trained, *options, "--calib", "none", "--bits", "4", "--methods", "rtn", "--baseline", "none"),
        *("--max-tokens", "300", "-o", corpus / "sweep", "--json"),
    )
    assert json.loads(sweep.stdout)["before"]["text_bytes"] == read_shard(sidecar.path_of(val))[1:301].sum()


def test_eval_without_the_sidecar_counts_the_same(corpus: Path, trained: Path, tmp_path: Path):
    """By the operators of the tokenizer; and without either there is one line that names both ways."""
    write_shard(tmp_path / "val.bin", read_shard(corpus / "data" / "val_000000.bin"))
    options = ("--data", tmp_path / "val.bin", "--seq-len", "64", "--max-tokens", "300", "--json")
    tokenizer = corpus / "data" / "tokenizer.model"
    found = json.loads(run("eval", trained, *options, "--tokenizer", tokenizer).stdout)
    named = corpus / "data" / "val_bytes_000000.bin"
    assert found["bytes"] == json.loads(run("eval", trained, *options, "--bytes", named).stdout)["bytes"]
    error = run("eval", trained, *options, code=2).stderr
    assert "--tokenizer T.model or --bytes SIDECAR.bin" in error
    assert "no val_bytes.bin beside" in error


def test_the_audit_decodes_the_text(corpus: Path, trained: Path, tmp_path: Path):
    val, counts = (read_shard(corpus / "data" / f"val_{name}000000.bin") for name in ("", "bytes_"))
    write_shard(tmp_path / "val.bin", val)
    options = ("--data", tmp_path / "val.bin", "--seq-len", "64", "--max-tokens", "400", "--audit", "--json")
    tokenizer = ("--tokenizer", corpus / "data" / "tokenizer.model")

    def check(code: int) -> dict[str, object]:
        facts = json.loads(run("eval", trained, *options, *tokenizer, code=code).stdout)
        return {row["name"]: row for row in facts["audit"]}["bytes"]

    write_shard(tmp_path / "val_bytes.bin", counts)
    assert check(0)["passed"] is True
    inflated = np.array(counts)
    inflated[np.isin(val, caseops.operator_ids(load_tokenizer(tokenizer[1])).all)] = 3  # operators as if they were text
    write_shard(tmp_path / "val_bytes.bin", inflated)
    assert check(4)["passed"] is False


def test_a_strangers_sidecar_beside_the_shard_is_one_line(corpus: Path, trained: Path, tmp_path: Path):
    val = read_shard(corpus / "data" / "val_000000.bin")
    write_shard(tmp_path / "val.bin", val)
    write_shard(tmp_path / "val_bytes.bin", read_shard(corpus / "data" / "train_bytes_000000.bin")[: len(val)])
    result = run("eval", trained, "--data", tmp_path / "val.bin", code=3)
    assert result.stderr.startswith("pgolf: ")
    assert "val_bytes.bin is another shard's sidecar" in result.stderr
    assert len(result.stderr.splitlines()) == 1
