"""Text into token shards, and the shards of a folder."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgolf.common import extras
from pgolf.common.files import replacing
from pgolf.data import caseops, sidecar
from pgolf.data.shards import write_shard
from pgolf.data.text import PIECE, pieces
from pgolf.data.tokenizers import load_tokenizer, stream_bytes, token_bytes
from pgolf.errors import DataError

BOS = 1
MIN_CHARACTERS = 1000
HELD_OUT_EVERY = 20
SHARD_TOKENS = 100_000_000  # tokens of a shard at most, as in the contest's
TOKENIZER_BYTES = 100_000_000  # text that the tokenizer learns from: its trainer holds it in memory
SENTENCE = 2000  # characters; longer lines go to the tokenizer's trainer in parts, for it skips long ones


@dataclass(frozen=True)
class DataFiles:
    """Training shards, and a validation shard and its tokenizer where there are any."""

    train: tuple[Path, ...]
    val: Path | None
    tokenizer: Path | None


def find_data(folder: str | Path, vocab_size: int, tokenizer: str | Path | None = None) -> DataFiles:
    """The shards of a folder: *.bin with "val" in the name is for validation, every other for training, but sidecars.

    The tokenizer is `tokenizer`, or the one *.model of the folder (or its folder tokenizers/) with `vocab_size` pieces.
    DataError for a folder without training shards.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"--data {folder}: no such folder")
    shards = sorted(path for path in folder.glob("*.bin") if not sidecar.is_sidecar(path))
    train = tuple(path for path in shards if "val" not in path.name)
    if not train:
        raise DataError(f"--data {folder}: holds no training shards (*.bin, without val in the name)")
    val = next((path for path in shards if "val" in path.name), None)
    if tokenizer is not None:
        return DataFiles(train, val, Path(tokenizer))
    models = sorted([*folder.glob("*.model"), *folder.glob("tokenizers/*.model")])
    fitting = [path for path in models if load_tokenizer(path).get_piece_size() == vocab_size]
    return DataFiles(train, val, fitting[0] if len(fitting) == 1 else None)


def tokenize(
    files: Sequence[str | Path], out: str | Path, *, vocab_size: int = 1024, with_caseops: bool = False
) -> DataFiles:
    """Train a tokenizer on UTF-8 text files and write out/tokenizer.model, out/train_000000.bin... and out/val_000000.bin.

    Files are streamed in pieces of about 100 thousand characters, cut at a line's end. A piece is a document: BOS, then
    its tokens. Every 20th is held out, and the tokenizer never sees it. The same files and vocabulary give the same
    tokenizer and shards, byte for byte. with_caseops: capitals as operators, and a byte sidecar for each shard, see
    `pgolf.data.caseops` and `sidecar`. The folder is made. DataError for files that are missing, not UTF-8, or too
    little text.
    """
    extras.need("sentencepiece")
    out, paths = Path(out), [Path(file) for file in files]
    total = sum(len(text) for path in paths for text in pieces(path, PIECE))  # also finds what is not UTF-8
    piece = max(1, min(PIECE, total // (2 * HELD_OUT_EVERY)))  # whole lines make pieces up to twice as long
    if total < MIN_CHARACTERS:
        raise DataError(
            f"{total} characters are too little text to train on and hold some out: {MIN_CHARACTERS} at least"
        )
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file: -o names the folder of the shards")
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = out / "tokenizer.model"
    sample = (text for text, held_out in _marked(paths, piece) if not held_out)
    try:
        train_tokenizer(_until(sample, TOKENIZER_BYTES), tokenizer, vocab_size, with_caseops=with_caseops)
    except DataError:
        with suppress(OSError):  # others' files lie there
            out.rmdir()
        raise
    train = _write(out, "train", (text for text, held_out in _marked(paths, piece) if not held_out), tokenizer)
    val = _write(out, "val", (text for text, held_out in _marked(paths, piece) if held_out), tokenizer)
    return DataFiles(tuple(train), val[0], tokenizer)


def _marked(paths: Sequence[Path], piece: int) -> Iterator[tuple[str, bool]]:
    """(text, held out) of every piece."""
    texts = (text for path in paths for text in pieces(path, piece))
    for index, text in enumerate(texts):
        yield text, index % HELD_OUT_EVERY == HELD_OUT_EVERY // 2


def _until(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Texts until they sum to more than `limit` characters."""
    for text in texts:
        yield text
        limit -= len(text)
        if limit < 0:
            return


def _write(out: Path, split: str, texts: Iterable[str], tokenizer: Path) -> list[Path]:
    """Shards out/`split`_000000.bin and on, of the encoded texts; their sidecars too if the tokenizer has CaseOps' operators."""
    paths: list[Path] = []
    rows: list[NDArray[np.uint16]] = []
    num_bytes, lut = 0, token_bytes(tokenizer)

    def flush() -> None:
        nonlocal num_bytes
        paths.append(out / f"{split}_{len(paths):06d}.bin")
        tokens = np.concatenate(rows)
        sidecar.path_of(paths[-1]).unlink(missing_ok=True)  # of a shard that this one replaces
        if lut.operators:
            _write_sidecar(paths[-1], stream_bytes(tokens, lut), num_bytes)
        write_shard(paths[-1], tokens)
        rows.clear()
        num_bytes = 0

    for text in texts:
        rows.append(document_tokens([text], tokenizer))
        num_bytes += len(text.encode())
        if sum(map(len, rows)) > SHARD_TOKENS:
            flush()
    if rows:
        flush()
    return paths


def _write_sidecar(shard: Path, counts: NDArray[np.uint16], num_bytes: int) -> None:
    """The sidecar of `shard`. DataError unless its counts sum to the text's bytes: then a piece is not what it says."""
    if (counted := int(counts.sum(dtype=np.int64))) != num_bytes:
        raise DataError(f"{shard}: its tokens count {counted} bytes, the text has {num_bytes}: the tokenizer lost some")
    write_shard(sidecar.path_of(shard), counts)


def train_tokenizer(texts: Iterable[str], path: Path, vocab_size: int, *, with_caseops: bool = False) -> None:
    """Write a SentencePiece BPE model of `vocab_size` pieces: byte fallback, whitespace kept, runs of spaces pieces.

    with_caseops: the operators are pieces, and the others are those of text encoded with them. DataError if the text
    does not have as many pieces.
    """
    extras.need("sentencepiece")
    import sentencepiece

    model = io.BytesIO()
    if with_caseops:
        texts = map(caseops.encode, texts)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n", *(caseops.OPERATORS if with_caseops else ())],
            character_coverage=0.9999,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-150:]
        raise DataError(f"no tokenizer of {vocab_size} pieces can be trained on this text: {reason}") from None
    with replacing(path) as file:
        file.write(model.getvalue())


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    lines = (line for text in texts for line in text.splitlines() if line)
    return (line[start : start + SENTENCE] for line in lines for start in range(0, len(line), SENTENCE))


def document_tokens(texts: Sequence[str], tokenizer: Path) -> NDArray[np.uint16]:
    """uint16 [N]: every text after a BOS, one after the other; by CaseOps if the tokenizer has its operators."""
    processor = load_tokenizer(tokenizer)
    if caseops.operator_ids(processor):
        texts = [caseops.encode(text) for text in texts]
    rows = processor.encode(list(texts))
    return np.concatenate([np.array([BOS, *row], np.uint16) for row in rows])
