"""Bytes are those of the text that was scored, whatever a tokenizer does to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from pgolf.data import corpus, encoding
from pgolf.data.encoding import Encoded, Encoder, encoded, encoder
from pgolf.errors import DataError, UsageError
from tests import folders

TEXTS = [
    "plain words, and more words", "Häuschen am Fluß, façade", "小さな家 🏡🚪👩‍👩‍👧 Привет", " leads  with spaces \n\n\ttabs ",
    "ﬁne ½ ligatures Ａ", "a", "<|endoftext|> is text here", "", "\u2581 literal \u2581", "é as two: e\u0301",
]  # fmt: skip


def trained(made: tokenizers.Tokenizer, **options: object) -> tokenizers.Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, **options)
    made.train_from_iterator([folders.text()], trainer)
    return made


def byte_level(prefix: bool = False) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    return trained(
        made, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[folders.END, "<s>", "</s>"]
    )


def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama's first and Gemma's: ▁ for spaces, one before the text, bytes for what there is no piece for."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    made = trained(
        made, special_tokens=["<unk>", "<s>", "</s>", *pieces], initial_alphabet=["a", "▁"], limit_alphabet=40
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def lossy() -> tokenizers.Tokenizer:
    """Normalises, lower-cases, drops spaces, and does not know most characters."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made = trained(made, special_tokens=["<unk>", "<s>", "</s>"], limit_alphabet=30)
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return made


KINDS = {
    "byte level": byte_level,
    "with a space before": lambda: byte_level(True),
    "byte fallback": byte_fallback,
    "lossy": lossy,
}


@pytest.fixture(params=KINDS)
def by(request: pytest.FixtureRequest, tmp_path: Path) -> Encoder:
    KINDS[request.param]().save(str(tmp_path / "tokenizer.json"))
    return encoder(tmp_path)


def documents_of(made: Encoded) -> list[tuple[np.ndarray, int]]:
    """(ids, bytes) of every document."""
    starts = np.flatnonzero(made.tokens == made.start)
    cuts = zip(starts, [*starts[1:], len(made.tokens)], strict=True)
    return [(made.tokens[a:b], int(made.byte_counts[a:b].sum())) for a, b in cuts]


def test_bytes_are_the_texts(by: Encoder) -> None:
    made = encoded(TEXTS, by)
    assert made.tokens.dtype == np.uint32
    assert [size for _, size in documents_of(made)] == [len(text.encode()) for text in TEXTS]
    assert (made.byte_counts >= 0).all()
    assert made.byte_counts[0] == 0  # the first token is never scored, so it stands for nothing


def test_each_token_has_the_bytes_of_its_characters(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "t.json"))
    by = encoder(tmp_path / "t.json")
    ((ids, counts, _),) = by.encode(["q🏡z"])
    assert counts.sum() == 6
    assert counts[0] == 0
    assert counts[1] == 1
    assert counts[2] == 4  # the house, at the first of its bytes
    assert counts[-1] == 1
    assert by.decode(ids) == "q🏡z"


def test_a_document_begins_as_its_family_has_it(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    ordinary = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).token_to_id("a")

    def start(settings: dict[str, object], config: dict[str, object]) -> int | None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        (tmp_path / "config.json").write_text(json.dumps(config))
        return encoder(tmp_path).start

    assert start({}, {}) == 0  # <|endoftext|>, by its name
    assert start({"bos_token": {"content": "<s>"}}, {"bos_token_id": 0}) == 1
    assert start({"bos_token": None, "eos_token": "</s>"}, {"bos_token_id": 1}) == 1
    assert start({"eos_token": "</s>"}, {"bos_token_id": ordinary}) == 2  # a default that names an ordinary piece
    assert start({}, {"eos_token_id": [2, 0]}) == 2
    byte_fallback().save(str(tmp_path / "tokenizer.json"))
    assert start({"bos_token": "</s>"}, {}) == 1  # what the tokenizer does itself comes before all


def test_a_stream_without_any_start(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained(made, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()).save(str(tmp_path / "t.json"))
    found = encoded(["ab", "cd"], encoder(tmp_path / "t.json"))
    assert found.start is None
    assert found.byte_counts.sum() == 4


def test_a_vocabulary_beyond_sixteen_bits(tmp_path: Path) -> None:
    pieces = {f"w{n}": n for n in range(70_000)} | {"<unk>": 70_000}
    made = tokenizers.Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "t.json"))
    found = encoded(["w69999 w1 never"], encoder(tmp_path / "t.json"))
    assert found.tokens.tolist() == [69_999, 1, 70_000]
    assert found.byte_counts.tolist() == [6, 3, 6]
    assert found.unknown == 70_000


def test_characters_that_a_tokenizer_skips_are_told(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "t.json"))
    found = encoded(["ab aé", "b 🏡\n"], encoder(tmp_path / "t.json"))
    assert found.tokens.tolist() == [2, 0, 1]
    assert found.byte_counts.sum() == len("ab aéb 🏡\n".encode())
    assert found.lost == 2 / 9  # of nine characters; spaces are none that count


@pytest.mark.parametrize("normalizer", [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()])
def test_characters_that_are_only_rewritten_are_not_lost(tmp_path: Path, normalizer) -> None:
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence([normalizers.NFD(), normalizer])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained(made, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()).save(str(tmp_path / "t.json"))
    assert encoded(["Ab é Ñ  🏡z"], encoder(tmp_path / "t.json")).lost == 0


def test_our_sentencepiece_models_read_text_too(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(folders.text(400), encoding="utf-8")
    for with_caseops in (False, True):
        files = corpus.tokenize(
            [tmp_path / "train.txt"], tmp_path / f"d{with_caseops}", vocab_size=420, with_caseops=with_caseops
        )
        assert files.tokenizer is not None
        by = encoder(files.tokenizer)
        texts = [text for text in TEXTS if text]
        made = encoded(texts, by)
        assert made.start == corpus.BOS
        assert [size for _, size in documents_of(made)] == [len(text.encode()) for text in texts]
        assert by.decode(documents_of(made)[2][0].tolist()) == texts[2]


def test_shares_of_what_a_lossy_model_gives_back_sum_to_the_text() -> None:
    counts = np.array([0, 3, 1, 4], np.int64)
    assert encoding._summing_to(16, counts).tolist() == [0, 6, 2, 8]
    assert encoding._summing_to(8, counts) is counts
    assert encoding._summing_to(7, counts).sum() == 7


def test_a_shards_bytes_by_a_byte_level_vocabulary(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    by = encoder(tmp_path)
    made = encoded(TEXTS, by)
    assert by.stream_bytes(made.tokens).sum() == made.byte_counts.sum()
    with pytest.raises(DataError, match="beyond the tokenizer's vocabulary"):
        by.stream_bytes(np.array([10**6]))
    byte_fallback().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match="not byte-level"):
        encoder(tmp_path).stream_bytes(made.tokens)


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="brings no tokenizer"):
        encoder(tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(DataError, match="is tiktoken's"):
        encoder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"is no tokenizer\.json"):
        encoder(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b'{"\xff')
    with pytest.raises(DataError, match=r"is no tokenizer\.json \(invalid start byte at byte 2"):
        encoder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DataError, match="git lfs pull"):
        encoder(tmp_path)
    with pytest.raises(DataError, match="No such file"):
        encoder(tmp_path / "nowhere.json")
    byte_level().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="the text is empty"):
        encoded([], encoder(tmp_path))


def test_enough_is_read_and_no_more(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    seen = []

    def texts():
        for n in range(1000):
            seen.append(n)
            yield "some words"

    assert len(encoded(texts(), encoder(tmp_path), most=10).tokens) >= 10
    assert len(seen) <= encoding.TOGETHER


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "lossy"])
def test_offsets_alone_account_for_every_byte(kind: str, tmp_path: Path) -> None:
    """Nothing is put right at a document's end where the tokenizer loses nothing."""
    made = KINDS[kind]()
    for text in filter(None, TEXTS):
        ends = [end for _, end in made.encode(text, add_special_tokens=False).offsets]
        assert encoding._bytes_of(text, ends).sum() == len(text.encode())
