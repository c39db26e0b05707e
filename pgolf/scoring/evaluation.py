"""A model scored on a text from beginning to end, and the audit of that score: what `pgolf eval` does to each model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pgolf.code.weigh import counted
from pgolf.common.progress import Advance
from pgolf.data import encoding, shards, sidecar, text, tokenizers
from pgolf.data.tokenizers import Convention
from pgolf.errors import BudgetError, ModelError, UsageError
from pgolf.models import usermodel
from pgolf.models.logits import device_of, logits_of
from pgolf.scoring import audit, bpb, documents
from pgolf.scoring.audit import Check
from pgolf.scoring.reading import Reading
from pgolf.scoring.results import Result
from pgolf.scoring.static import HiddenThenHead, StaticLosses

CPU_BATCH, CUDA_BATCH = 8, 32  # windows: 32 are enough to keep an H100 busy with a model of 36M parameters
DEFAULT_BOS = 1  # of the contest's shards
FEW_LOST = 1e-4  # of the characters: control characters that a normalizer drops, say
NO_START = -1  # no token: documents of a tokenizer that has none to begin them with


class Scorer(Protocol):
    """tokens [N] -> nats [N - 1] of their targets: the one function that makes the figure and that the audit examines."""

    def __call__(self, tokens: NDArray[np.integer], progress: Advance | None = None) -> NDArray[np.floating]: ...


@dataclass(frozen=True)
class Text:
    """The shard: tokens and byte_counts [N], the start token of documents, how many targets are scored, and where the
    counts come from, if that was not asked for."""

    tokens: NDArray[np.integer]
    byte_counts: NDArray[np.integer]
    bos: int
    total: int
    counted_by: str
    unknown: float = 0.0  # share of the scored targets for which the tokenizer had no piece
    lost: float = 0.0  # share of the text's characters for which it made no token

    @property
    def scored(self) -> NDArray[np.integer]:
        """[total + 1]: the targets that are scored and the token before them."""
        return self.tokens[: self.total + 1]

    def starts(self, reading: Reading) -> NDArray[np.int64]:
        """Positions of document starts. DataError where there is none and contexts are to begin with documents."""
        return shards.document_starts(self.scored, self.bos, required=reading.within_documents)


@dataclass(frozen=True)
class Scored:
    """A result, and what its audit needs: the scorer that made it and the nats of every target, [total]."""

    result: Result
    scorer: Scorer
    nats: NDArray[np.floating]


def read_text(
    data: Path | Sequence[Path],
    *,
    tokenizer: Path | None = None,
    sidecar_file: Path | None = None,
    convention: Convention = "exact",
    bos: int | None = None,
    max_tokens: int | None = None,
) -> Text:
    """The shard `data` and its byte counts, see `pgolf.data.sidecar.byte_counts`; or the text files, see `_encoded`.

    tokenizer: a SentencePiece model, a tokenizer.json or the folder of either. bos: where None, what the tokenizer says, or
    the contest's. max_tokens: targets scored. Raises DataError, UsageError.
    """
    files = [data] if isinstance(data, Path) else list(data)
    if not text.refuse_mixed(files, "--data"):
        return _encoded(files, tokenizer, sidecar_file, bos, max_tokens)
    (data,) = files
    tokens = shards.read_shard(data)
    counts = sidecar.byte_counts(data, tokens, tokenizer=tokenizer, sidecar=sidecar_file, convention=convention)
    found = None if sidecar_file else sidecar.beside(data)
    total = bpb.num_targets(tokens, counts, max_tokens)
    unknown = tokenizers.unknown_share(tokens[1 : total + 1], encoding.encoder(tokenizer).unknown) if tokenizer else 0.0
    return Text(
        tokens, counts, start_of_shard(bos, tokenizer), total, f"bytes of {found.name}" if found else "", unknown
    )


def start_of_shard(bos: int | None, tokenizer: Path | None) -> int:
    """The token that begins a shard's documents: as said, else as the tokenizer says, else the contest's."""
    if bos is None and tokenizer:
        bos = encoding.encoder(tokenizer).start
    return DEFAULT_BOS if bos is None else bos


def _encoded(
    files: Sequence[Path], tokenizer: Path | None, sidecar_file: Path | None, bos: int | None, max_tokens: int | None
) -> Text:
    """Text files as tokens; their bytes are those of the text. The documents follow one another as `Encoded` says."""
    if sidecar_file is not None:
        raise UsageError(
            f"--bytes {sidecar_file} counts the tokens of a shard; {files[0]} is text, whose bytes are known"
        )
    if tokenizer is None:
        raise UsageError(
            f"{files[0]} is text: name what makes tokens of it, --tokenizer T.model, tokenizer.json or the model's folder"
        )
    most = None if max_tokens is None else max_tokens + 1
    made = encoding.encoded(text.documents(files), encoding.encoder(tokenizer), most=most)
    total = bpb.num_targets(made.tokens, made.byte_counts, max_tokens)
    start = next((token for token in (bos, made.start) if token is not None), NO_START)
    return Text(
        made.tokens,
        made.byte_counts,
        start,
        total,
        "",
        tokenizers.unknown_share(made.tokens[1 : total + 1], made.unknown),
        made.lost,
    )


def score(
    model: nn.Module,
    text: Text,
    reading: Reading,
    *,
    source: str,
    logits: str | None = None,
    own_scorer: str | None = None,
    time_limit: float | None = None,
    progress: Advance | None = None,
) -> Scored:
    """The score of a model that is in place on its device; on a GPU it is compiled first, outside the time.

    source: where the model is from, for the result. logits: as in `logits_of`. own_scorer: FILE.py:NAME of an evaluator
    in place of ours. time_limit: seconds that scoring may take, compiling included; BudgetError after them. Raises DataError,
    ModelError, UsageError.
    """
    starts = text.starts(reading)
    own = _own_scorer(model, own_scorer) if own_scorer else None
    losses = _fast_losses(model, reading, logits) if own is None and device_of(model).type == "cuda" else None
    scorer = own or _our_scorer(model, text, reading, logits, losses)
    began = time.perf_counter()
    nats = scorer(text.scored, progress=progress if time_limit is None else within(time_limit, progress or _nobody))
    compiling = losses.compile_seconds if losses else 0.0
    made = bpb.result_of(nats, text.byte_counts, time.perf_counter() - began - compiling)
    how = ", ".join(filter(None, (own_scorer, str(reading), text.counted_by)))
    by_document = documents.per_document(nats, text.byte_counts, starts)
    note = "; ".join(filter(None, (reading.note(nats, starts), _lost_text(text)))) or None
    return Scored(Result(source, how, made, by_document, note, compiling), scorer, nats)


def within(seconds: float, progress: Advance) -> Advance:
    """`progress`, which raises BudgetError once so much time has gone since now."""
    began = time.perf_counter()

    def advance(done: int, total: int) -> None:
        gone = time.perf_counter() - began
        if gone > seconds:
            raise BudgetError(
                f"scoring takes longer than {seconds:g} s: {done:,} of {total:,} tokens took {gone:.0f} s, all of them would "
                f"take about {gone * total / max(done, 1):,.0f} s"
            )
        progress(done, total)

    return advance


def _nobody(done: int, total: int) -> None:
    """Progress that nobody asked for."""


def _lost_text(text: Text) -> str | None:
    if text.lost >= FEW_LOST:
        return (
            f"the tokenizer makes no token of about {text.lost:.2%} of the text's characters, whose bytes are counted: bits per "
            "byte are too low"
        )
    if not text.unknown:
        return None
    return f"{text.unknown:.2%} of the scored tokens are <unk>: what text they stand for is lost, and their bytes are guessed"


def _fast_losses(model: nn.Module, reading: Reading, logits: str | None) -> StaticLosses | None:
    """For windows; test-time training goes its own way."""
    if reading.ttt:
        return None
    windows = windows_that_fit(model, reading.seq_len, logits)
    return StaticLosses(model, logits_of(model, logits), seq_len=reading.seq_len, batch_size=windows)


def windows_that_fit(model: nn.Module, seq_len: int, logits: str | None = None) -> int:
    """Windows of a batch on the model's GPU: CUDA_BATCH, or as many as have their logits in a quarter of its free memory,
    as float32. Of a model with a head apart they are never there whole."""
    if isinstance(model, HiddenThenHead):
        return CUDA_BATCH
    free, _ = torch.cuda.mem_get_info(device_of(model))
    return int(max(1, min(CUDA_BATCH, free // 4 // (4 * seq_len * _vocab_size(model, logits)))))


def _our_scorer(
    model: nn.Module, text: Text, reading: Reading, logits: str | None, losses: StaticLosses | None
) -> Scorer:
    def scored(tokens: NDArray[np.integer], progress: Advance | None = None) -> NDArray[np.floating]:
        batch_size = losses.batch_size if losses else CPU_BATCH
        return reading.score(
            model, tokens, text.bos, logits=logits, losses=losses, batch_size=batch_size, progress=progress
        )

    return scored


def _own_scorer(model: nn.Module, spec: str) -> Scorer:
    own: Callable[[NDArray[np.int64]], Any] = usermodel.function(spec, "--scorer")(model)

    def scored(tokens: NDArray[np.integer], progress: Advance | None = None) -> NDArray[np.floating]:
        nats = np.asarray(own(np.array(tokens, np.int64)), np.float64)
        if nats.shape != (len(tokens) - 1,) or not np.isfinite(nats).all():
            raise ModelError(f"--scorer {spec}: wanted {len(tokens) - 1} finite nats, got {nats.shape}")
        return nats

    return scored


def audited(
    scored: Scored,
    model: nn.Module,
    text: Text,
    reading: Reading,
    *,
    logits: str | None = None,
    tokenizer: Path | None = None,
    artifact_bytes: int | None = None,
    code: Sequence[str | Path] = (),
    cap: int,
    progress: Advance | None = None,
) -> list[Check]:
    """Experiments on the scorer that gave a score, then the text's bytes and the size.

    artifact_bytes: None for a checkpoint; code: scripts that count against `cap` with it.
    """
    sample = audit.sample(text.scored, text.bos, prefix=reading.audit_prefix, crosses=reading.crosses)
    tell = progress or (lambda done, total: None)
    return [
        *audit.scorer_checks(scored.scorer, sample, _vocab_size(model, logits), tell),
        audit.run(scored.scorer, text.scored, scored.nats, len(sample.tokens)),
        audit.text_bytes(text.tokens, text.byte_counts, text.bos, tokenizer, text.total),
        audit.size(artifact_bytes, sum(counted(code).values()), cap),
    ]


def _vocab_size(model: nn.Module, logits: str | None) -> int:
    one = torch.zeros(1, 1, dtype=torch.int64, device=device_of(model))
    with torch.no_grad():
        return int(logits_of(model, logits)(one).shape[-1])
