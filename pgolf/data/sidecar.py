"""Byte sidecars: a shard's second file, of the same format, with the bytes of text that each token stands for."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgolf.data.encoding import encoder
from pgolf.data.shards import CHUNK, read_shard
from pgolf.data.tokenizers import Convention, stream_bytes, token_bytes
from pgolf.errors import DataError, UsageError

_NAME = re.compile(r"(?P<text>.*?)(?P<number>_\d+)?")
_SIDECAR = re.compile(r".*_bytes(_\d+)?")
LEAST_AGREEMENT = 0.9  # share of usual counts: 1.00 in real sidecars, 0.4 in strangers, 0.5 in shifted ones
LEAST_REPEATED = 256  # tokens that came before: fewer prove nothing


def path_of(shard: str | Path) -> Path:
    """Where the sidecar of `shard` belongs, as the contest names them: DIR/val_bytes_000000.bin for DIR/val_000000.bin."""
    shard = Path(shard)
    name = _NAME.fullmatch(shard.stem)
    assert name is not None  # matches anything
    return shard.with_name(f"{name['text']}_bytes{name['number'] or ''}{shard.suffix}")


def is_sidecar(path: Path) -> bool:
    """Whether a file is a sidecar by its name."""
    return _SIDECAR.fullmatch(path.stem) is not None


def beside(shard: str | Path) -> Path | None:
    """The sidecar of `shard`, if there is one where it belongs."""
    path = path_of(shard)
    return path if path.is_file() else None


def read(path: str | Path, tokens: NDArray[np.integer]) -> NDArray[np.uint16]:
    """uint16 [N]: the sidecar of `tokens` [N], mapped. DataError for one of another number of tokens or another shard.

    A length proves little: all full shards of a data set have the same. But in a sidecar that belongs to its shard a token
    has the same count nearly wherever it stands, and in another shard's it has not.
    """
    counts = read_shard(path).astype(np.uint16, copy=False)  # a wide shard's too: no piece has 65,536 bytes
    if len(counts) != len(tokens):
        raise DataError(f"{path} holds byte counts of {len(counts)} tokens; the data has {len(tokens)}")
    share = _agreement(np.asarray(tokens[:CHUNK]), np.asarray(counts[:CHUNK]))
    if share < LEAST_AGREEMENT:
        raise DataError(
            f"{path} is another shard's sidecar: only {share:.0%} of the tokens have the byte count that is usual for them"
        )
    return counts


def _agreement(tokens: NDArray[np.integer], counts: NDArray[np.integer]) -> float:
    """Of tokens [N] that are not the first of their kind, the share with the most frequent of `counts` [N] for it."""
    pairs, times = np.unique(tokens.astype(np.int64) << 16 | counts, return_counts=True)
    kinds = np.flatnonzero(np.diff(pairs >> 16, prepend=-1))
    repeated = len(tokens) - len(kinds)
    if repeated < LEAST_REPEATED:
        return 1.0
    return float((np.maximum.reduceat(times, kinds) - 1).sum() / repeated)


def byte_counts(
    shard: str | Path,
    tokens: NDArray[np.integer],
    *,
    tokenizer: str | Path | None = None,
    sidecar: str | Path | None = None,
    convention: Convention = "exact",
) -> NDArray[np.integer]:
    """[N]: bytes of the `tokens` [N] of `shard`, by `sidecar`, else by the one beside it, else by the tokenizer.

    convention: how the tokenizer counts. UsageError where there is none of the three, DataError for one that does not fit.
    """
    if path := sidecar or beside(shard):
        return read(path, tokens)
    if tokenizer is None:
        raise UsageError(
            f"--tokenizer T.model or --bytes SIDECAR.bin is needed to count bytes: there is no {path_of(shard).name} "
            f"beside {shard}"
        )
    if Path(tokenizer).is_dir() or Path(tokenizer).suffix == ".json":
        return encoder(tokenizer).stream_bytes(tokens)
    return stream_bytes(tokens, token_bytes(tokenizer), convention=convention)
