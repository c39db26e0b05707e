"""Bytes are counted as the decoded text has them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data.shards import read_shard
from pgolf.data.tokenizers import count_bytes, load_tokenizer, stream_bytes, token_bytes
from pgolf.errors import DataError
from tests.helpers import SHARED

BOS = 1
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "    if x == y:",
    "        return  x",
    "a b  c   d    e",
    "naïve café 漢字",
] * 20
TEXTS = [
    "the fox returns the dog",
    " leading space",
    "    four spaces\n\n  and two \n",
    "tabs\tand\nnewlines",
    "naïve ☃ 🦊 \x00 unseen Ω",
    "",
    " ",
]


def train_tokenizer(path: Path, **options) -> Path:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", minloglevel=2, num_threads=1, **options
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """verbatim: text is kept, runs of `▁` are pieces; prefixed: SentencePiece's defaults; unknown: no byte pieces."""
    directory = tmp_path_factory.mktemp("tokenizers")
    verbatim = {
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "user_defined_symbols": ["\n"],
    }
    options = {
        "verbatim": {**verbatim, "byte_fallback": True, "vocab_size": 340},
        "prefixed": {"byte_fallback": True, "vocab_size": 340},
        "unknown": {**verbatim, "vocab_size": 70},
    }
    return {name: train_tokenizer(directory / f"{name}.model", **some) for name, some in options.items()}


def encode_documents(tokenizer: Path, texts: list[str]) -> tuple[np.ndarray, str]:
    """(tokens with a BOS before each document, the text they decode to)."""
    sp = load_tokenizer(tokenizer)
    rows = sp.encode(texts)
    return np.array([t for row in rows for t in (BOS, *row)], np.uint16), "".join(sp.decode(row) for row in rows)


@pytest.mark.parametrize("name", ["verbatim", "prefixed", "unknown"])
def test_exact_count_is_the_length_of_the_decoded_text(tokenizers, name: str):
    tokens, text = encode_documents(tokenizers[name], TEXTS)
    counts = stream_bytes(tokens, token_bytes(tokenizers[name]))
    assert counts.sum() == len(text.encode())
    assert (counts[tokens == BOS] == 0).all()


@given(texts=st.lists(st.text(max_size=30), max_size=4))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", ["verbatim", "prefixed"])
def test_exact_count_of_any_text(tokenizers, name: str, texts: list[str]):
    tokens, text = encode_documents(tokenizers[name], texts)
    assert stream_bytes(tokens, token_bytes(tokenizers[name])).sum() == len(text.encode())


def test_verbatim_tokenizer_has_the_hard_pieces(tokenizers):
    """Without these the tests above would prove little."""
    tokens, text = encode_documents(tokenizers["verbatim"], TEXTS)
    sp = load_tokenizer(tokenizers["verbatim"])
    pieces = [sp.id_to_piece(int(t)) for t in tokens]
    assert text == "".join(TEXTS)
    assert "▁▁" in pieces
    assert "<0xF0>" in pieces
    assert token_bytes(tokenizers["unknown"]).boundary[0]
    assert not token_bytes(tokenizers["verbatim"]).strips
    assert token_bytes(tokenizers["prefixed"]).strips


def test_contest_count_piece_by_piece(tokenizers):
    """The contest's rule, by hand: one `▁` is removed and comes back as a byte unless a boundary is before it."""
    lut = token_bytes(tokenizers["verbatim"])
    sp = load_tokenizer(tokenizers["verbatim"])
    pieces = ["<s>", "▁the", "▁the", "▁▁", "<0xF0>", "▁", "<unk>", "▁the", "\n"]
    tokens = np.array([sp.piece_to_id(piece) for piece in pieces])
    assert (tokens[[1, 3, 4, 5, 8]] != 0).all()
    counts = count_bytes(tokens[1:], tokens[:-1], lut, convention="contest")
    assert counts.tolist() == [3, 4, 4, 1, 1, 0, 3, 1]
    exact = count_bytes(tokens[1:], tokens[:-1], lut, convention="exact")
    assert exact.tolist() == [4, 4, 2, 1, 1, 5, 4, 1]


@pytest.mark.parametrize("name", ["verbatim", "prefixed"])
def test_conventions_agree_on_text_without_whitespace_runs(tokenizers, name: str):
    texts = ["the quick brown fox", "naïve café\nover the ☃ dog", "a b c"]
    tokens, _ = encode_documents(tokenizers[name], texts)
    lut = token_bytes(tokenizers[name])
    assert (stream_bytes(tokens, lut) == stream_bytes(tokens, lut, convention="contest")).all()


def test_stream_is_counted_across_chunks(tokenizers, monkeypatch: pytest.MonkeyPatch):
    tokens, _ = encode_documents(tokenizers["prefixed"], TEXTS)
    lut = token_bytes(tokenizers["prefixed"])
    whole = stream_bytes(tokens, lut)
    monkeypatch.setattr("pgolf.data.tokenizers.CHUNK", 3)
    assert (stream_bytes(tokens, lut) == whole).all()


def test_tokens_beyond_the_tokenizer_are_refused(tokenizers):
    lut = token_bytes(tokenizers["verbatim"])
    with pytest.raises(DataError, match="token 340 at position 2 is beyond the tokenizer's vocabulary of 340"):
        stream_bytes(np.array([1, 2, 340]), lut)


def test_not_a_tokenizer(tmp_path: Path):
    (tmp_path / "t.model").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="not a SentencePiece model"):
        token_bytes(tmp_path / "t.model")
    with pytest.raises(DataError, match="no tokenizer at"):
        token_bytes(tmp_path / "none.model")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_1024_bpe", "fineweb_8192_bpe"])
def test_real_tokenizers(name: str):
    path = SHARED / "tokenizers" / f"{name}.model"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    texts = [*TEXTS, "a" + " " * 40 + "b", "▁ underline-like ▁▁"]
    tokens, text = encode_documents(path, texts)
    assert stream_bytes(tokens, token_bytes(path)).sum() == len(text.encode())


@pytest.mark.slow
def test_whole_validation_shard():
    shard, tokenizer = SHARED / "text_val_000000.bin", SHARED / "tokenizers" / "text_1024_bpe.model"
    if not shard.exists():
        pytest.skip(f"{shard} is not there")
    tokens = read_shard(shard)
    rows = [row.tolist() for row in np.split(tokens, np.flatnonzero(tokens == BOS))]
    text = "".join(load_tokenizer(tokenizer).decode(rows))
    assert stream_bytes(tokens, token_bytes(tokenizer)).sum() == len(text.encode())
