"""Tokenizers without a tokenizer.json give the ids that those who wrote the files give."""

from __future__ import annotations

import base64
import json
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
import transformers
from tokenizers import Regex as Pattern
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pgolf.data import encoding, tokenizer_files
from pgolf.data.encoding import encoded, encoder
from pgolf.errors import DataError
from tests import folders
from tests.data.test_encoding import TEXTS

MORE = [*TEXTS, "I'LL 12345 it's\r\n\r\n  7 !!//\n", "a" * 30, "don't  stop…\t\tHere", "ÅAÅ x́ǅǅ"]
CLASSES = {"GPT2Tokenizer": tokenizer_files.GPT2, "Qwen2Tokenizer": tokenizer_files.QWEN}


def trained(pattern: str) -> Tokenizer:
    """A byte-level BPE that splits by a pattern; no special piece."""
    made = Tokenizer(models.BPE())
    parts = [pre_tokenizers.Split(Pattern(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(parts), decoders.ByteLevel()
    if pattern == tokenizer_files.QWEN:
        made.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [folders.text(), *MORE], trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def merged(path: Path, kind: str, **settings: object) -> Tokenizer:
    """A folder with vocab.json and merges.txt of a class of transformers."""
    made = trained(CLASSES[kind])
    path.mkdir(exist_ok=True)
    made.model.save(str(path))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind} | settings))
    return made


def ranks_of(made: Tokenizer) -> dict[bytes, int]:
    back = {letter: byte for byte, letter in enumerate(tokenizer_files._letters())}
    return {bytes(back[letter] for letter in word): token for word, token in made.get_vocab().items()}


def ranked(path: Path, pattern: str) -> dict[bytes, int]:
    """A file of tiktoken's ranks: the bytes first, then what merges make, as its own files have it."""
    first = ranks_of(trained(pattern))
    ranks = {piece: rank for rank, piece in enumerate(sorted(first, key=lambda piece: (len(piece) > 1, first[piece])))}
    lines = (f"{base64.b64encode(piece).decode()} {rank}" for piece, rank in ranks.items())
    path.write_text("\n".join(lines) + "\n")
    return ranks


def joined(ranks: dict[bytes, int], pattern: str, text: str) -> list[int]:
    """The ids of a text as tiktoken finds them: the neighbours that make the piece of the lowest rank are joined first."""
    ids = []
    for word in regex.findall(pattern, text):
        parts = [bytes([byte]) for byte in word.encode()]
        while pairs := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
            _, at = min(pairs)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [ranks[part] for part in parts]
    return ids


@pytest.mark.parametrize("kind", CLASSES)
def test_vocabulary_and_merges_are_read_as_transformers_reads_them(kind: str, tmp_path: Path) -> None:
    made = merged(tmp_path, kind)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    by = encoder(tmp_path)
    for text, (ids, counts, _) in zip(MORE, by.encode(MORE), strict=True):
        if folders.END not in text:  # which is text to us, and a special token to them
            assert ids == theirs(text, add_special_tokens=False)["input_ids"] == made.encode(text).ids
        assert counts.sum() == len(text.encode())
        if kind == "GPT2Tokenizer":
            assert by.decode(ids) == text


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base", "r50k_base", "qwen"])
def test_ranks_are_joined_as_tiktoken_joins_them(name: str, tmp_path: Path) -> None:
    family = tokenizer_files.RANKED[name]
    ranks = ranked(tmp_path / f"{name}.tiktoken", family.pattern)
    for place in (tmp_path, tmp_path / f"{name}.tiktoken"):
        by = encoder(place)
        assert encoding.packages(place) == ["tokenizers"]
        for text, (ids, counts, _) in zip(MORE, by.encode(MORE), strict=True):
            plain = unicodedata.normalize(family.normal, text) if family.normal else text
            assert ids == joined(ranks, family.pattern, plain)
            assert counts.sum() == len(text.encode())
    found = by.stream_bytes(np.concatenate([ids for ids, *_ in by.encode(MORE[:3])]))
    assert found.sum() == sum(len(text.encode()) for text in MORE[:3])


def test_llama_3s_file_and_its_special_ids(tmp_path: Path) -> None:
    """tokenizer.model, a model of more ids than pieces, the first of them begins a text."""
    ranks = ranked(tmp_path / "tokenizer.model", tokenizer_files.CL100K)
    config = {"model_type": "llama", "vocab_size": len(ranks) + 8, "bos_token_id": len(ranks), "eos_token_id": [421]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    by = encoder(tmp_path)
    assert by.start == len(ranks)
    made = encoded(["one two", "<|begin_of_text|> is text"], by)
    assert made.tokens[0] == len(ranks)
    assert made.byte_counts.sum() == len("one two<|begin_of_text|> is text")
    assert by.decode([len(ranks), *joined(ranks, tokenizer_files.CL100K, "one two")]) == "one two"
    assert by.stream_bytes(made.tokens).sum() == made.byte_counts.sum()
    names = {str(len(ranks)): {"content": "<|begin_of_text|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": names, "bos_token": "<|begin_of_text|>"})
    )
    assert encoder(tmp_path).start == len(ranks)


def test_what_was_added_to_the_pieces(tmp_path: Path) -> None:
    made = merged(tmp_path, "Qwen2Tokenizer", eos_token="<|im_end|>")
    pieces = made.get_vocab_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_start|>": pieces, "<|im_end|>": pieces + 1}))
    by = encoder(tmp_path)
    assert by.start == pieces + 1
    assert by.encode(["<|im_start|>"])[0][0].count(pieces) == 0  # text is text
    (tmp_path / "added_tokens.json").write_text(json.dumps({"a": pieces}))
    with pytest.raises(
        DataError, match=r"'a' has another number in tokenizer.json|'a' has another number in vocab.json"
    ):
        encoder(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 10**9}))
    with pytest.raises(DataError, match="another model's tokenizer"):
        encoder(tmp_path)


def test_nothing_is_guessed(tmp_path: Path) -> None:
    merged(tmp_path / "m", "GPT2Tokenizer", tokenizer_class="CLIPTokenizer")
    with pytest.raises(DataError, match="do not say how text is split"):
        encoder(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert encoder(tmp_path / "m").start is None  # of a class that is not known, the model's family says it
    (tmp_path / "r").mkdir()
    ranked(tmp_path / "r" / "words.tiktoken", tokenizer_files.CL100K)
    with pytest.raises(
        DataError, match=r"words\.tiktoken is tiktoken's, .* and neither its name nor config\.json does"
    ):
        encoder(tmp_path / "r")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"IQ== 0\nnot base64! 1\n", "line 2: no base64 and rank"),
        (b"IQ== 0\n\nIg==\n", "line 3: no base64 and rank"),
        (b"IQ== 0\nIg== 0\n", "has no rank for every byte"),
        (b"", "has no rank for every byte"),
    ],
)
def test_damaged_ranks_are_named(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(data)
    with pytest.raises(DataError, match=says):
        encoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "data"), [("vocab.json", "{"), ("merges.txt", "a b c d\n"), ("merges.txt", "zz qq\n")]
)
def test_damaged_merges_are_named(name: str, data: str, tmp_path: Path) -> None:
    merged(tmp_path, "GPT2Tokenizer")
    (tmp_path / name).write_text(data)
    with pytest.raises(DataError, match=r"vocab\.json and merges\.txt make no tokenizer"):
        encoder(tmp_path)


def test_one_of_the_two_files_stands_for_both(tmp_path: Path) -> None:
    merged(tmp_path, "GPT2Tokenizer")
    assert encoder(tmp_path / "vocab.json").encode(["a b"])[0][0] == encoder(tmp_path).encode(["a b"])[0][0]
    (tmp_path / "merges.txt").unlink()
    assert not encoding.has_tokenizer(tmp_path)
    with pytest.raises(DataError, match="brings no tokenizer"):
        encoder(tmp_path)
