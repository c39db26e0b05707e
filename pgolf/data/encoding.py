"""Text into tokens by whichever tokenizer a model has, and the bytes of text that each token stands for.

Bytes are counted from the text itself, so whatever a tokenizer normalises, joins or does not know, they sum to the UTF-8
length of the text. A character that several tokens spell is counted at the first of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pgolf.common import extras
from pgolf.data import caseops, tokenizer_files
from pgolf.data.tokenizer_files import CONFIG, JSON, MERGES, PIECES, RANKS, SETTINGS, STARTS, VOCABULARY, facts
from pgolf.data.tokenizers import TokenBytes, load_tokenizer, stream_bytes, token_bytes, unspelled
from pgolf.errors import DataError, UsageError

TOGETHER = 64  # documents that are encoded at a time
BYTE_ALPHABET = 256
LFS = "version https://git-lfs"  # begins what lies in place of a large file that was not fetched


@dataclass(frozen=True)
class Encoded:
    """tokens uint32 [N] and byte_counts int64 [N]. start: the token that begins every document, None where there is none;
    unknown: the one that stands for what the tokenizer has no piece for; lost: the share of the text's characters, spaces
    aside, for which it makes no token at all."""

    tokens: NDArray[np.uint32]
    byte_counts: NDArray[np.int64]
    start: int | None
    unknown: int | None = None
    lost: float = 0.0


class Document(NamedTuple):
    """ids, its start among them; counts: bytes of text that each stands for; lost: characters that have no token."""

    ids: list[int]
    counts: NDArray[np.int64]
    lost: int = 0


class Encoder(Protocol):
    """A tokenizer, whoever made it. start, unknown: as in `Encoded`."""

    start: int | None
    unknown: int | None

    def encode(self, texts: Sequence[str]) -> list[Document]:
        """Every document."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of one document's ids."""

    def stream_bytes(self, tokens: NDArray[np.integer]) -> NDArray[np.integer]:
        """[N]: bytes of each of `tokens` [N], whose text is not at hand. DataError where that cannot be known exactly."""


def has_tokenizer(folder: str | Path) -> bool:
    """Whether a folder brings a tokenizer that `encoder` reads."""
    folder = Path(folder)
    return any((folder / name).is_file() for name in (JSON, PIECES)) or tokenizer_files.brings(folder)


def packages(path: str | Path | None) -> list[str]:
    """What `encoder` needs for a tokenizer beside pgolf's own requirements."""
    if path is None:
        return []
    return ["sentencepiece" if _pieces(Path(path)) else "tokenizers"]


def encoder(path: str | Path) -> Encoder:
    """The tokenizer in a file (tokenizer.json, a SentencePiece model, tiktoken's ranks), or in a folder, where it may also be
    vocab.json and merges.txt.

    Raises DataError, and MissingExtraError where the package that reads it is not installed.
    """
    path = Path(path)
    if found := _pieces(path):
        return _SentencePiece(found)
    whole = path / JSON if path.is_dir() else path
    if (whole.is_file() or path.suffix == ".json") and not tokenizer_files.reads(whole):
        return _Tokenizers(_whole(whole), whole)
    if not path.is_dir() or tokenizer_files.brings(path):
        return _Tokenizers(tokenizer_files.read(path), whole)
    raise DataError(
        f"{path}: brings no tokenizer ({JSON}, {PIECES}, {VOCABULARY} and {MERGES}, or *{RANKS}): name one with --tokenizer, or "
        "write it there with AutoTokenizer.from_pretrained(...).save_pretrained(DIR)"
    )


def _pieces(path: Path) -> Path | None:
    """The SentencePiece model that a path is or, being a folder, has for its tokenizer; None where that is another kind."""
    if path.is_dir():
        other = (path / JSON).is_file() or tokenizer_files.brings(path)
        return path / PIECES if (path / PIECES).is_file() and not other else None
    return None if path.suffix == ".json" or tokenizer_files.reads(path) else path


def encoded(texts: Iterable[str], by: Encoder, *, most: int | None = None) -> Encoded:
    """Documents joined to one stream. most: enough tokens; no further document is read then. DataError for no text."""
    rows: list[Document] = []
    some, have, read = iter(texts), 0, 0
    while (most is None or have < most) and (few := list(islice(some, TOGETHER))):
        made = by.encode(few)
        have += sum(len(row.ids) for row in made)
        read += sum(map(len, few))
        rows += made
    if not any(row.ids for row in rows):
        raise DataError("the text is empty: there is nothing to read")
    tokens = np.concatenate([np.array(row.ids, np.uint32) for row in rows])
    lost = sum(row.lost for row in rows) / max(read, 1)
    return Encoded(tokens, np.concatenate([row.counts for row in rows]), by.start, by.unknown, lost)


class _SentencePiece:
    """A SentencePiece model; text with capitals as operators where it has their pieces."""

    def __init__(self, path: Path) -> None:
        self._processor: Any = load_tokenizer(path)
        self._table: TokenBytes = token_bytes(path)
        self._operators = caseops.operator_ids(self._processor) is not None
        bos: int = self._processor.bos_id()
        self.start: int | None = bos if bos >= 0 else None
        self.unknown: int | None = self._processor.unk_id()

    def encode(self, texts: Sequence[str]) -> list[Document]:
        first = [] if self.start is None else [self.start]
        rows = self._processor.encode([caseops.encode(text) for text in texts] if self._operators else list(texts))
        made = [np.array([*first, *row], np.int64) for row in rows]
        counts = (stream_bytes(row, self._table).astype(np.int64) for row in made)
        return [
            Document(row.tolist(), _summing_to(len(text.encode()), count))
            for text, row, count in zip(texts, made, counts, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        text = caseops.text_of(self._processor, ids)
        return unspelled(text, self._table) if self._table.spelled_space else text

    def stream_bytes(self, tokens: NDArray[np.integer]) -> NDArray[np.integer]:
        return stream_bytes(tokens, self._table)


def _summing_to(total: int, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """`counts`, or where what they stand for is not the text that was encoded, the text's bytes shared out like them."""
    have = int(counts.sum())
    if have in (total, 0):
        return counts
    return np.diff(counts.cumsum() * total // have, prepend=0)


def _whole(path: Path) -> Any:
    """The `tokenizers.Tokenizer` in a tokenizer.json."""
    extras.need("tokenizers")
    import tokenizers

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no tokenizer.json ({error.reason} at byte {error.start})") from None
    if text.startswith(LFS):
        raise DataError(f"{path} is a Git LFS pointer, not the file itself: run git lfs pull")
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # it raises bare ones
        raise DataError(f"{path} is no tokenizer.json ({' '.join(str(error).split())[:120]})") from None


class _Tokenizers:
    """A `tokenizers.Tokenizer`, with what the files beside its own, `path`, say of its first token."""

    def __init__(self, made: Any, path: Path) -> None:
        self._tokenizer, self._path = made, path
        self._tokenizer.encode_special_tokens = True  # text is text: <|endoftext|> in it is thirteen characters
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._front, self._back = self._frame()
        self.start: int | None = self._front[0] if self._front else self._said_start()
        if not self._front and self.start is not None:
            self._front = [self.start]
        unknown = json.loads(self._tokenizer.to_str())["model"].get("unk_token")
        self.unknown: int | None = None if unknown is None else self._tokenizer.token_to_id(unknown)

    def encode(self, texts: Sequence[str]) -> list[Document]:
        made = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            Document(
                [*self._front, *each.ids, *self._back],
                self._framed(text, [end for _, end in each.offsets]),
                _without_token(text, each.offsets),
            )
            for text, each in zip(texts, made, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def stream_bytes(self, tokens: NDArray[np.integer]) -> NDArray[np.integer]:
        table = self._byte_table()
        beyond = tokens >= len(table)
        if beyond.any():
            raise DataError(
                f"token {tokens[beyond.argmax()]} is beyond the tokenizer's vocabulary of {len(table)}: made by another one?"
            )
        counts: NDArray[np.int64] = table[tokens]
        return counts

    def _framed(self, text: str, ends: Sequence[int]) -> NDArray[np.int64]:
        inner = _bytes_of(text, ends)
        counts = np.concatenate([np.zeros(len(self._front), np.int64), inner, np.zeros(len(self._back), np.int64)])
        if len(counts):
            counts[max(len(self._front) + len(inner) - 1, 0)] += len(text.encode()) - int(inner.sum())
        return counts

    def _frame(self) -> tuple[list[int], list[int]]:
        """What the tokenizer itself puts before and behind a document."""
        plain = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a", add_special_tokens=True).ids
        at = next((i for i in range(len(whole)) if plain and whole[i : i + len(plain)] == plain), None)
        return ([], []) if at is None else (whole[:at], whole[at + len(plain) :])

    def _said_start(self) -> int | None:
        """The first token by the folder's files, if it is one of the special ones: what begins a text, else what ends one."""
        special = {token for token, added in self._tokenizer.get_added_tokens_decoder().items() if added.special}
        settings, config = (facts(self._path.with_name(name)) for name in (SETTINGS, CONFIG))
        said: list[Any] = []
        for name in ("bos_token", "eos_token"):
            word = settings.get(name)
            said.append(self._id(word.get("content") if isinstance(word, dict) else word))
            token = config.get(f"{name}_id")
            said.append(token[0] if isinstance(token, list) and token else token)
        said += map(self._id, STARTS)
        return next((token for token in said if isinstance(token, int) and token in special), None)

    def _id(self, word: Any) -> int | None:
        found: int | None = self._tokenizer.token_to_id(word) if isinstance(word, str) else None
        return found

    def _byte_table(self) -> NDArray[np.int64]:
        """int64 [V]: bytes of each piece of a byte-level vocabulary, whose pieces have a character a byte."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        if '"ByteLevel"' not in self._tokenizer.to_str() or len({c for p in vocabulary for c in p}) > BYTE_ALPHABET:
            raise UsageError(
                f"{self._path} is not byte-level, so that the bytes of a shard's tokens are not known: give the text itself, or "
                "--bytes SIDECAR.bin"
            )
        added = self._tokenizer.get_added_tokens_decoder()
        table = np.zeros(self._tokenizer.get_vocab_size(with_added_tokens=True), np.int64)
        for piece, token in vocabulary.items():
            if token not in added:
                table[token] = len(piece)
        for token, each in added.items():
            table[token] = 0 if each.special else len(each.content.encode())
        return table


def _without_token(text: str, spans: Sequence[tuple[int, int]]) -> int:
    """How many characters of a text lie in none of its tokens' spans; spaces aside, which many tokenizers only split at."""
    edges = np.zeros(len(text) + 1, np.int64)
    for place, of_edge in zip((0, 1), (1, -1), strict=True):
        np.add.at(edges, np.array([span[place] for span in spans], np.int64), of_edge)
    return sum(not text[i].isspace() for i in np.flatnonzero(edges.cumsum()[:-1] == 0))


def _bytes_of(text: str, ends: Sequence[int]) -> NDArray[np.int64]:
    """int64 [N]: UTF-8 bytes of `text` from the furthest end so far to each of `ends` [N], in characters."""
    furthest = np.minimum(np.maximum.accumulate(np.array([0, *ends], np.int64)), len(text))
    if not text.isascii():
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        sizes = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
        furthest = np.concatenate([[0], sizes.cumsum()])[furthest]
    return np.diff(furthest)
