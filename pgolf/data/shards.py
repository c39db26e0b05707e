"""Token shards of the contest, and the order in which training reads them. No shard is ever read whole."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.common.files import replacing
from pgolf.errors import DataError

MAGIC = 20240520
VERSIONS: dict[int, str] = {1: "<u2", 2: "<u4"}  # the contest's, and ours for vocabularies over 65,536
THEIRS = (20240801, 7)  # magic and version of llm.c's shards for Llama 3: uint32 tokens
ARRAY = b"\x93NUMPY"  # what a file of numpy.save begins with
HEADER_BYTES = 256 * 4  # 256 little-endian int32: magic, version, token count, zeros
CHUNK = 1 << 20  # tokens looked at together when a shard is streamed

Tokens = NDArray[np.uint16] | NDArray[np.uint32]


def read_shard(path: str | Path) -> Tokens:
    """The tokens of one shard, uint16 or uint32 [N], mapped read-only. DataError unless header and file size agree.

    Also those of llm.c for Llama 3, and whole numbers [N] that numpy.save wrote.
    """
    path = Path(path)
    try:
        found = path.stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise DataError(f"{path} is no regular file: a shard is mapped, save it as one")
        size = found.st_size
        if _begins(path, ARRAY):
            return _array(path)
        header = np.fromfile(path, "<i4", count=HEADER_BYTES // 4)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    count, dtype = _checked_count(path, header, size)
    if count == 0:
        return np.zeros(0, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype, mode="r", offset=HEADER_BYTES, shape=(count,))


def _checked_count(path: Path, header: NDArray[np.int32], size: int) -> tuple[int, str]:
    """How many tokens a shard holds, and their dtype."""
    if tuple(header[:2].tolist()) == THEIRS:
        header = np.array([MAGIC, 2, *header[2:3]], "<i4")
    if header.size < 1 or header[0] != MAGIC:
        raise DataError(
            f"{path} is not a token shard: its first word should be {MAGIC}; pgolf tokenize makes one of text, "
            "pgolf.data.shards.write_shard of token ids"
        )
    if size < HEADER_BYTES:
        raise DataError(f"{path} is truncated: {size} bytes, shorter than its {HEADER_BYTES}-byte header")
    version, count = int(header[1]), int(header[2])
    if version not in VERSIONS:
        raise DataError(f"{path} is a token shard of version {version}; known are 1 (uint16) and 2 (uint32)")
    held = (size - HEADER_BYTES) / np.dtype(VERSIONS[version]).itemsize
    if held != count:
        problem = "is truncated" if held < count else "has bytes after its last token"
        raise DataError(f"{path} {problem}: its header says {count} tokens, the file holds {held:g}")
    return count, VERSIONS[version]


def is_tokens(start: bytes) -> bool:
    """Whether the first eight bytes of a file say that it holds tokens."""
    magics = MAGIC, THEIRS[0]
    return start.startswith(ARRAY) or int.from_bytes(start[:4], "little") in magics


def _begins(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _array(path: Path) -> Tokens:
    """Tokens that numpy.save wrote, as uint32 where they are no uint16."""
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is no array that numpy.load reads ({' '.join(str(error).split())[:100]})") from None
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise DataError(f"{path} holds {found.dtype} {list(found.shape)}: tokens are whole numbers [N]")
    if found.dtype in (np.dtype("<u2"), np.dtype("<u4")):
        narrow: Tokens = found
        return narrow
    if found.size and (found.min() < 0 or found.max() > np.iinfo(np.uint32).max):
        raise DataError(f"{path} holds {found.min()} and {found.max()}: tokens are 0..{np.iinfo(np.uint32).max}")
    wide: Tokens = found.astype(np.uint32)
    return wide


def write_shard(path: str | Path, tokens: NDArray[np.integer], *, wide: bool = False) -> None:
    """Write `tokens` [N], each 0..65535, as a shard; a reader never sees half of it. DataError for other values.

    wide: as uint32, in our version 2 of the format, for a vocabulary over 65,536; the contest's readers do not know it.
    """
    path, tokens, version = Path(path), np.asarray(tokens), 2 if wide else 1
    highest = np.iinfo(VERSIONS[version]).max
    if tokens.size and (tokens.min() < 0 or tokens.max() > highest):
        raise DataError(f"{path}: a shard holds tokens 0..{highest}, not {tokens.min()}..{tokens.max()}")
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = MAGIC, version, tokens.size
    with replacing(path) as file:
        file.write(header.tobytes())
        file.write(tokens.astype(VERSIONS[version]).tobytes())


def check_vocabulary(tokens: NDArray[np.integer], vocab_size: int, *, owner: str = "model") -> None:
    """DataError naming the first of `tokens` [N] that the owner does not know. Streams: the shard may be mapped."""
    for start in range(0, len(tokens), CHUNK):
        beyond = tokens[start : start + CHUNK] >= vocab_size
        if beyond.any():
            at = start + int(beyond.argmax())
            raise DataError(
                f"token {tokens[at]} at position {at} is beyond the {owner}'s vocabulary of {vocab_size}: made by another "
                "tokenizer?"
            )


def document_starts(tokens: NDArray[np.integer], bos: int, *, required: bool = False) -> NDArray[np.int64]:
    """int64 [D]: positions of the document start `bos` in `tokens` [N]. Streams: the shard may be mapped.

    DataError where there is none and one is required.
    """
    chunks = range(0, len(tokens), CHUNK)
    found = [start + np.flatnonzero(tokens[start : start + CHUNK] == bos) for start in chunks]
    starts = np.concatenate([np.zeros(0, np.int64), *found])
    if required and len(starts) == 0:
        raise DataError(f"no document start (token {bos}) in the data: name the right one with --bos")
    return starts


@dataclass(frozen=True)
class WindowSampler:
    """Batches of windows from `shards` [N each]: every epoch visits each shard's windows once, in a new random order.

    A pure function of (seed, step): nothing has to be saved to resume, and ranks need not talk to each other.

    A window is `seq_len` inputs and their targets, so `seq_len` + 1 tokens; windows never span two shards. bos: the
    token that begins a document; a window moves back to the start of its document if that is at most a quarter of a
    window away, so that most contexts begin where a text does, as they do when a document is scored.
    """

    shards: Sequence[NDArray[np.integer]]
    seq_len: int
    batch_size: int
    seed: int
    bos: int | None = None

    def __post_init__(self) -> None:
        if not any(len(shard) > self.seq_len for shard in self.shards):
            longest = max(map(len, self.shards), default=0)
            raise DataError(f"no shard holds a window of {self.seq_len} + 1 tokens: the longest has {longest}")

    def batch(self, step: int) -> Tensor:
        """int64 [batch_size, seq_len + 1], the same for the same seed and step on every machine."""
        lengths = tuple(map(len, self.shards))
        per_epoch = sum(_windows_in(length, self.seq_len) for length in lengths)
        rows = []
        for n in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, index = divmod(n, per_epoch)
            shard, start = _epoch(lengths, self.seq_len, self.seed, epoch)[index]
            start = self._snapped(shard, start)
            rows.append(self.shards[shard][start : start + self.seq_len + 1])
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def _snapped(self, shard: int, start: int) -> int:
        """`start`, or the start of its document if that is near."""
        documents = self._documents[shard]
        index = np.searchsorted(documents, start, side="right") - 1
        near = index >= 0 and start - documents[index] <= self.seq_len // 4
        return int(documents[index]) if near else int(start)

    @cached_property
    def _documents(self) -> list[NDArray[np.int64]]:
        """Where documents of each shard begin, found in one pass over it; nowhere without `bos`."""
        if self.bos is None:
            return [np.zeros(0, np.int64) for _ in self.shards]
        return [document_starts(shard, self.bos) for shard in self.shards]


def _windows_in(length: int, seq_len: int) -> int:
    """Windows of a shard in an epoch: one fewer than would fit leaves room for every phase; an only one is kept."""
    fitting = max(0, length - 1) // seq_len
    return max(min(fitting, 1), fitting - 1)


@lru_cache(maxsize=4)
def _epoch(lengths: tuple[int, ...], seq_len: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """(shard, first token) of every window of one epoch, in the order of that epoch: int64 [W, 2].

    All windows of a shard are shifted by a random phase, so a token does not always stand at the same place of its window.
    """
    rng = np.random.default_rng([seed, epoch])
    windows = []
    for shard, length in enumerate(lengths):
        count = _windows_in(length, seq_len)
        phases = min(seq_len, length - count * seq_len)
        starts = (rng.integers(phases) if count else 0) + seq_len * np.arange(count)
        windows.append(np.stack([np.full(count, shard), starts], axis=1))
    return rng.permutation(np.concatenate(windows))
