"""Text into shards: nothing is lost, held-out text is whole, and bad text is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgolf.data.corpus import BOS, HELD_OUT_EVERY, find_data, tokenize
from pgolf.data.shards import read_shard, write_shard
from pgolf.data.tokenizers import load_tokenizer, stream_bytes, token_bytes
from pgolf.errors import DataError

LINES = [f"line {i}: {i * i} tabs\tand ünïcode ✓ of {'x' * (i % 17)}" for i in range(900)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("text")
    paths = [folder / "a.txt", folder / "b.txt"]
    paths[0].write_bytes("\n".join(LINES[:600]).encode())
    paths[1].write_bytes("\r\n".join(LINES[600:]).encode())
    return paths


def test_every_byte_lands_in_one_shard(texts: list[Path], tmp_path: Path):
    files = tokenize(texts, tmp_path / "out", vocab_size=400)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("tokenizer.model", "train_000000.bin", "val_000000.bin"),
    ]
    sp, lut = load_tokenizer(files.tokenizer), token_bytes(files.tokenizer)
    shards = [read_shard(path) for path in (*files.train, files.val)]
    assert sum(stream_bytes(shard, lut).sum() for shard in shards) == sum(path.stat().st_size for path in texts)
    held_out, train = sp.decode(shards[-1].tolist()), sp.decode(shards[0].tolist())
    assert held_out.splitlines()[0] in LINES
    assert held_out.splitlines()[0] not in train
    documents = sum(int((shard == BOS).sum()) for shard in shards)
    assert int((shards[-1] == BOS).sum()) == pytest.approx(documents / HELD_OUT_EVERY, abs=1)


def test_the_same_text_gives_the_same_files(texts: list[Path], tmp_path: Path):
    for name in ("a", "b"):
        tokenize(texts, tmp_path / name, vocab_size=400)
    for name in ("tokenizer.model", "train_000000.bin", "val_000000.bin"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_long_texts_make_several_shards(texts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pgolf.data.corpus.SHARD_TOKENS", 3000)
    files = tokenize(texts, tmp_path, vocab_size=400)
    assert [path.name for path in files.train[:2]] == ["train_000000.bin", "train_000001.bin"]
    assert find_data(tmp_path, 400) == files


def test_bad_text_is_refused(texts: list[Path], tmp_path: Path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 1000)
    (tmp_path / "short.txt").write_text("short")
    for paths, message in [
        ([tmp_path / "none.txt"], "none.txt: No such file"),
        ([tmp_path / "latin.txt"], "latin.txt is not UTF-8"),
        ([tmp_path / "short.txt"], "5 characters are too little text"),
    ]:
        with pytest.raises(DataError, match=message):
            tokenize(paths, tmp_path / "out")
    with pytest.raises(DataError, match="no tokenizer of 60000 pieces"):
        tokenize(texts, tmp_path / "out", vocab_size=60000)
    with pytest.raises(DataError, match="no tokenizer of 70000 pieces"):
        tokenize(texts, tmp_path / "out", vocab_size=70000)


def test_a_folder_and_the_tokenizer_that_fits(texts: list[Path], tmp_path: Path):
    files = tokenize(texts, tmp_path / "made", vocab_size=400)
    folder = tmp_path / "folder"
    (folder / "tokenizers").mkdir(parents=True)
    for name in ("text_train_1.bin", "text_train_0.bin", "text_val_0.bin"):
        write_shard(folder / name, read_shard(files.val))
    (folder / "tokenizers" / "t.model").write_bytes(files.tokenizer.read_bytes())
    found = find_data(folder, 400)
    assert [path.name for path in found.train] == ["text_train_0.bin", "text_train_1.bin"]
    assert found.val.name == "text_val_0.bin"
    assert found.tokenizer.name == "t.model"
    assert find_data(folder, 500).tokenizer is None
    with pytest.raises(DataError, match="no such folder"):
        find_data(tmp_path / "missing", 400)
