"""Capitals become operators and come back: any text, through the transform and through a tokenizer, every byte counted."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgolf.data import caseops
from pgolf.data.corpus import BOS, document_tokens, train_tokenizer
from pgolf.data.tokenizers import load_tokenizer, stream_bytes, token_bytes

SHOWN = str.maketrans(dict(zip(caseops.OPERATORS, "^*+!", strict=True)))  # title, caps, inner, escape
HARD = "\ue001\ue002\ue003\ue004▁_ aAbBzZ éÉñÑß ẞ İı ſ K Å ςσΣ ǅǆǄ ΐ ŉ ǰ Ⱥⱥ Ა Ꭰꭰ яЯ Ⅷⅷ Ａａ 𐐀𐐨 ﬁ \u0345\n\t\r\0"
CASED = st.text(alphabet=st.sampled_from(HARD), max_size=40)
TEXTS = st.one_of(
    st.text(max_size=60), CASED, st.text(alphabet="aB ", max_size=30), st.text(alphabet="яЯéÉaA ", max_size=30)
)
CORPUS = [
    f"The quick Brown fox number {i} JUMPS over the LAZY dog. NASA and McDonald and HTTPServer." for i in range(60)
]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("The NASA file", "^the* nasa file"),
        ("the\nThe, a  B", "the\n^the, a ^ b"),
        ("iPhone McDonald camelCase", "i+phone^ mc+donald camel+case"),
        ("HTTPServer xHTML URLs PCs", "*http+server x*html* ur+ls^ p+cs"),
        ("MAX_SIZE2 A1", "*max_*size2^ a1"),
        ("CAFÉ Élan élan ΟΔΟΣ Яндекс", "*caf+é^ élan élan* οδοσ^ яндекс"),
        ("\ue001The\ue004 \ue003▁_", "!^^the!! !+!__"),
        ("ß ẞ İ ı ſ ς ǅ Ⱥ Ꭰ", "ß ẞ İ ı ſ ς ǅ Ⱥ Ꭰ"),
        ("Ǆ ǆ", "^ǆ ǆ"),
    ],
)
def test_by_hand(text: str, shown: str):
    assert caseops.encode(text).translate(SHOWN) == shown
    assert caseops.decode(caseops.encode(text)) == text


def contests(text: str) -> str:
    """What PR #1729 describes: operators after the space, before runs of ASCII letters alone, mixed ones letter by letter."""

    def marked(match: re.Match[str]) -> str:
        word = match[0]
        if word in caseops.OPERATORS:
            return caseops.ESCAPE + word
        if len(word) > 1 and word.isupper():
            return caseops.CAPS + word.lower()
        inner = re.sub("[A-Z]", lambda capital: caseops.INNER + capital[0].lower(), word[1:])
        return (caseops.TITLE if word[0].isupper() else "") + word[0].lower() + inner

    return re.sub(f"[{caseops.OPERATORS}]|[A-Za-z]+", marked, text)


def test_the_contests_transform_by_hand():
    text = "The NASA file, HTTPServer CAFé A \ue001"
    assert contests(text).translate(SHOWN) == "^the *nasa file, ^h+t+t+p+server *café ^a !^"


@given(text=TEXTS)
@settings(max_examples=300, deadline=None)
def test_the_contests_own_transform_is_decoded(text: str):
    assert caseops.decode(contests(text)) == text


@given(text=TEXTS.filter(lambda text: "▁" not in text))
@settings(max_examples=100, deadline=None)
def test_bytes_of_the_contests_own_shards(tokenizer: Path, text: str):
    """Without a sidecar, by the operators among the tokens. A literal ▁ is lost there."""
    tokens = np.array(load_tokenizer(tokenizer).encode(contests(text)), np.uint16)
    assert stream_bytes(tokens, token_bytes(tokenizer)).sum() == len(text.encode())


@given(text=TEXTS)
@example(text=HARD * 2)
@example(text="".join(map(chr, [*range(0xD800), *range(0xE000, 0x10450)])))
@settings(max_examples=500, deadline=None)
def test_any_text_survives(text: str):
    encoded = caseops.encode(text)
    assert caseops.decode(encoded) == text
    folded = set(caseops._grammar().lower)
    assert not folded.intersection(map(ord, encoded))


@given(one=TEXTS, other=TEXTS)
@settings(max_examples=200, deadline=None)
def test_different_texts_stay_different(one: str, other: str):
    assert (caseops.encode(one) == caseops.encode(other)) == (one == other)


@given(text=CASED)
@settings(max_examples=200, deadline=None)
def test_what_no_text_encodes_to_is_decoded_too(text: str):
    """A model may write operators anywhere; those that act upon nothing vanish."""
    decoded = caseops.decode(text)
    assert caseops.decode(caseops.encode(decoded)) == decoded


def test_dangling_operators_vanish():
    assert caseops.decode("a\ue001 1\ue002\ue002b\ue003\ue004") == "a 1B"


def test_letters_and_their_capitals_are_the_same_in_every_python():
    """Texts encoded under one Python must decode under all: the table never changes."""
    table = caseops._grammar().lower
    assert all(len(chr(a).encode()) == len(chr(b).encode()) for a, b in table.items())
    assert len(table) == 713
    digest = hashlib.sha256(np.array(sorted(table.items()), "<u4").tobytes()).hexdigest()
    assert digest.startswith("794f0f9904362e6c")


@pytest.mark.parametrize("unit", ["a", "A", " A", "aA", "É", "éÉ", "\ue004", "\ue002", "▁", " "])
def test_the_time_is_linear(unit: str):
    """A quadratic step would take minutes."""
    text = unit * 200_000
    began = time.process_time()
    assert caseops.decode(caseops.encode(text)) == text
    caseops.decode(text)
    assert time.process_time() - began < 10


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("caseops") / "t.model"
    train_tokenizer(CORPUS, path, 340, with_caseops=True)
    return path


@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@example(texts=[HARD, "", "The fox", " The", "\ue004", "▁"])
@settings(max_examples=200, deadline=None)
def test_tokens_give_back_the_text_and_count_its_bytes(tokenizer: Path, texts: list[str]):
    """Of every document by itself, wherever a chunk of the count ends."""
    processor, lut = load_tokenizer(tokenizer), token_bytes(tokenizer)
    tokens = document_tokens(texts, tokenizer)
    counts = stream_bytes(tokens, lut)
    starts = np.flatnonzero(tokens == BOS)
    for text, first, end in zip(texts, starts, [*starts[1:], len(tokens)], strict=True):
        assert caseops.text_of(processor, tokens[first:end].tolist()) == text
        assert counts[first:end].sum() == len(text.encode())
    assert (counts[tokens == BOS] == 0).all()
    assert (stream_bytes(tokens, lut, convention="contest")[tokens == BOS] == 0).all()


def test_bytes_token_by_token(tokenizer: Path):
    processor = load_tokenizer(tokenizer)
    tokens = document_tokens(["The\ue001▁"], tokenizer)
    pieces = [processor.id_to_piece(int(token)).translate(SHOWN) for token in tokens]
    counts = stream_bytes(tokens, token_bytes(tokenizer)).tolist()
    assert pieces == ["<s>", "^", "the", "!", "^", "!", "<0x5F>"]
    assert counts == [0, 0, 3, 0, 3, 2, 1]


def test_capitals_share_pieces(tokenizer: Path, tmp_path: Path):
    """The same word in three cases is the same pieces after an operator; without CaseOps it is not."""
    train_tokenizer(CORPUS, tmp_path / "plain.model", 340)
    forms = [" quick", " Quick", " QUICK"]

    def distinct(path: Path) -> int:
        drop = caseops.operator_ids(load_tokenizer(path))
        rows = [tuple(t for t in document_tokens([form], path) if drop is None or t not in drop.all) for form in forms]
        return len(set(rows))

    assert distinct(tokenizer) == 1
    assert distinct(tmp_path / "plain.model") == 3


def test_an_ordinary_tokenizer_has_no_operators(tmp_path: Path):
    train_tokenizer(CORPUS, tmp_path / "plain.model", 340)
    processor = load_tokenizer(tmp_path / "plain.model")
    assert caseops.operator_ids(processor) is None
    assert token_bytes(tmp_path / "plain.model").operators is None
    assert caseops.text_of(processor, processor.encode("The Fox")) == "The Fox"
