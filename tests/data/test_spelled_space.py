"""A tokenizer without a piece for a lone space spells it in the three bytes of `▁`: the text has one byte there."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from pgolf.data.tokenizers import stream_bytes, token_bytes, unknown_share
from pgolf.scoring import audit

TEXTS = [" x", "x y", "a  b", "a   \n b", " ab", "é ▂ x"]


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def without_lone_space(model: bytes) -> bytes:
    """A SentencePiece file (protobuf: pieces are field 1, their text field 1 of them) less the piece `▁`."""
    out, at, piece = b"", 0, "▁".encode()
    while at < len(model):
        start = at
        tag, at = varint(model, at)
        size, at = varint(model, at)
        body, at = model[at : at + size], at + size
        if tag >> 3 != 1 or not body.startswith(bytes([10, len(piece)]) + piece):
            out += model[start:at]
    return out


def tokenizer(path: Path, **options: bool) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab ab ba abba", "abab bb aa"] * 50),
        model_writer=model,
        model_type="bpe",
        vocab_size=280,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **options,
    )
    path.write_bytes(without_lone_space(model.getvalue()))
    return path


@pytest.mark.parametrize("prefix", [False, True])
def test_bytes_are_the_texts(tmp_path: Path, prefix: bool) -> None:
    path = tokenizer(tmp_path / "t.model", byte_fallback=True, add_dummy_prefix=prefix)
    sp, lut = sentencepiece.SentencePieceProcessor(model_file=str(path)), token_bytes(path)
    assert sp.encode("x y", out_type=str)[-4:-1] == ["<0xE2>", "<0x96>", "<0x81>"]
    for text in TEXTS:
        tokens = np.array([1, *sp.encode(text)])
        assert int(stream_bytes(tokens, lut).sum()) == len(text.encode()), text
    stream = np.array([token for text in TEXTS for token in (1, *sp.encode(text))])
    assert int(stream_bytes(stream, lut).sum()) == sum(len(text.encode()) for text in TEXTS)


@pytest.mark.parametrize("prefix", [False, True])
def test_an_audit_finds_the_same_bytes(tmp_path: Path, prefix: bool) -> None:
    path = tokenizer(tmp_path / "t.model", byte_fallback=True, add_dummy_prefix=prefix)
    sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokens = np.array([token for text in TEXTS for token in (1, *sp.encode(text))])
    counts = stream_bytes(tokens, token_bytes(path))
    assert audit.text_bytes(tokens, counts, 1, path, len(tokens) - 1).number == 0
    counts[3] += 1
    assert audit.text_bytes(tokens, counts, 1, path, len(tokens) - 1).passed is False


def test_the_contests_rule_stays_the_contests(tmp_path: Path) -> None:
    path = tokenizer(tmp_path / "t.model", byte_fallback=True, add_dummy_prefix=False)
    sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert stream_bytes(np.array(sp.encode("x y")), token_bytes(path), convention="contest").tolist() == [1] * 5


def test_the_share_of_unknown_pieces(tmp_path: Path) -> None:
    path = tokenizer(tmp_path / "t.model", byte_fallback=False, add_dummy_prefix=False)
    sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokens = np.array(sp.encode("abéab"))
    assert unknown_share(tokens, 0) == pytest.approx(1 / len(tokens))
    assert unknown_share(tokens[:1], 0) == 0
