"""Text as people keep it: plain files, JSON lines, parquet; and the documents in it."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from pgolf.common.files import not_a_file
from pgolf.data.shards import is_tokens
from pgolf.errors import DataError, UsageError

FIELD = "text"  # of a JSON line, and a column of parquet
PIECE = 100_000  # characters of a document, about: whole lines
BLOCK = 1 << 20  # bytes of a file that are looked at together
COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh", b"PK\x03\x04")  # gzip, zstd, xz, bzip2, zip
LINES, TABLES, SHARDS = (".jsonl", ".ndjson"), (".parquet",), (".bin",)


def is_shard(path: str | Path) -> bool:
    """Whether a file holds tokens rather than text: by its name, or its first word."""
    path = Path(path)
    if not_a_file(path.resolve()) not in {"", "a folder"}:  # a pipe or device may have no end, or nobody who writes
        raise DataError(f"{path} is no regular file: save the text as one")
    if path.is_dir():
        raise DataError(f"{path} is a folder: name the files in it")
    if path.suffix in SHARDS:
        return True
    try:
        with path.open("rb") as file:
            return is_tokens(file.read(8))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def documents(files: Iterable[str | Path]) -> Iterator[str]:
    """The documents of text files, one after the other, the long ones in pieces of about PIECE characters.

    A plain file is one document; of .jsonl each line, of .parquet each row, has one in its field `text`. Raises DataError
    for what cannot be read, is not UTF-8, lacks the field, or where there is nothing in any of them.
    """
    some, named = False, [Path(file) for file in files]
    for path in named:
        for text in _texts(path):
            for part in _cut(text):
                some = True
                yield part
    if not some:
        raise DataError(f"{', '.join(map(str, named[:4]))}: the text is empty: there is nothing to read")


def spread(files: Sequence[str | Path], characters: int) -> Iterator[str]:
    """Documents spread evenly over the files, about so many characters of them; all where there are fewer."""
    total = sum(map(len, documents(files)))
    every = max(1, total // max(characters, 1))
    for index, text in enumerate(documents(files)):
        if index % every == 0:
            yield text


def _texts(path: Path) -> Iterator[str]:
    if path.suffix in TABLES:
        return _rows(path)
    return _lines(path) if path.suffix in LINES else pieces(path, PIECE)


def pieces(path: Path, size: int) -> Iterator[str]:
    """The text of a file in parts of about `size` characters, each whole lines. DataError if it is not UTF-8."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from iter(lambda: _some(file, size), "")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: {_first_wrong(path)}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def _first_wrong(path: Path) -> str:
    """What is wrong with a file that is no UTF-8 text, and the mend."""
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as file:
        start = file.read(BLOCK)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "it begins as UTF-16 does: iconv -f utf-16 -t utf-8"
        if b"\0" in start or start.startswith(COMPRESSED):
            return "it is binary, or compressed: name the text itself"
        for block in (start, *iter(lambda: file.read(BLOCK), b"")):
            held = len(decoder.getstate()[0])  # of a character that the last block began
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                return f"byte {done - held + error.start:,} ({error.reason}); of another encoding? iconv -f latin1 -t utf-8"
            done += len(block)
    return f"it ends within a character, at byte {done:,}"


def _some(file: IO[str], size: int) -> str:
    """At most `size` characters, and the rest of the line up to as many again."""
    return (text := file.read(size)) and text + file.readline(size)


def _cut(text: str) -> Iterator[str]:
    """A document as `pieces` cuts a file."""
    while len(text) > 2 * PIECE:
        line = text.find("\n", PIECE, 2 * PIECE)
        end = 2 * PIECE if line < 0 else line + 1
        yield text[:end]
        text = text[end:]
    if text:
        yield text


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    yield _field(line, f"{path}, line {number}")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def _field(line: bytes, where: str) -> str:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8 text ({error.reason})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is not JSON ({error})") from None
    if isinstance(value, dict) and FIELD not in value:
        raise DataError(f"{where}: has no field {FIELD!r} that holds text; {_fields(value)}")
    return _text(value.get(FIELD) if isinstance(value, dict) else None, where)


def _fields(value: dict[str, Any]) -> str:
    """What a line has instead, and the mend."""
    there = ", ".join(map(repr, list(value)[:6])) or "none"
    texts = [name for name, inner in value.items() if isinstance(inner, str)]
    return f"its fields: {there}" + (f"; rename {texts[0]!r} to {FIELD!r}" if len(texts) == 1 else "")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: has no field {FIELD!r} that holds text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: holds half a surrogate pair, which is no text") from None
    return value


def _rows(path: Path) -> Iterator[str]:
    if find_spec("pyarrow") is None:
        raise DataError(f"{path}: pyarrow reads parquet and is not installed here: pip install pyarrow, or give .jsonl")
    from pyarrow import ArrowException, parquet  # optional, and slow to start

    try:
        with parquet.ParquetFile(path) as table:
            if FIELD not in table.schema_arrow.names:
                raise DataError(f"{path}: has no column {FIELD!r}; there are {', '.join(table.schema_arrow.names[:8])}")
            for batch in table.iter_batches(batch_size=256, columns=[FIELD]):
                for value in batch.column(0).to_pylist():
                    yield _text(value, str(path))
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: is no parquet file ({' '.join(str(error).split())[:120]})") from None


def refuse_mixed(files: Sequence[str | Path], option: str) -> bool:
    """Whether the files of an option are one shard; False for text. UsageError for several shards, or a shard beside text."""
    shards = [path for path in files if is_shard(path)]
    if shards and len(files) > 1:
        raise UsageError(f"{option} {shards[0]}: a token shard is given alone; several files are text")
    return bool(shards)
