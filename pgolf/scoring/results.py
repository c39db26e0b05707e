"""The outcome of one evaluation, with what every document cost: printed, saved as JSON, read back and compared."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.errors import DataError
from pgolf.scoring.bpb import EvalResult
from pgolf.scoring.documents import Documents
from pgolf.scoring.paired import Interval, interval

MOST_NATS = 1e15  # of a document, so that squares stay finite
ROUNDING = 1e-6  # between a score and the sum of its documents


@dataclass(frozen=True)
class Result:
    """source: what was scored; how: in which contexts; score: of all of it; documents: of each document;
    note: what a user should know. compile_seconds: what compiling the model took, not counted in the score's."""

    source: str
    how: str
    score: EvalResult
    documents: Documents
    note: str | None = None
    compile_seconds: float = 0.0

    @property
    def interval(self) -> Interval:
        return interval(self.documents)

    def summary(self) -> dict[str, Any]:
        """JSON without the documents."""
        score, found = self.score, self.interval
        return {
            "source": self.source,
            "how": self.how,
            "bpb": score.bpb,
            "standard_error": found.standard_error,
            "low": found.low,
            "high": found.high,
            "loss": score.loss,
            "perplexity": score.perplexity,
            "tokens": score.tokens,
            "bytes": score.bytes,
            "documents": len(self.documents),
            "seconds": score.seconds,
            "compile_seconds": self.compile_seconds,
            "tokens_per_second": score.tokens_per_second,
            "note": self.note,
        }

    def to_json(self) -> dict[str, Any]:
        """The summary and `per_document`: columns tokens, bytes, nats, one entry a document in the order of the data."""
        return self.summary() | {"per_document": self.documents.to_json()}


def is_result(path: Path) -> bool:
    """Whether a file is named like a saved result; checkpoints and artifacts never are."""
    return path.suffix == ".json"


def read(path: Path) -> Result:
    """A result that `pgolf eval -o` saved. Raises DataError."""
    try:
        facts = json.loads(path.read_text())
        columns = facts["per_document"]
        documents = Documents(
            tokens=np.array(columns["tokens"], np.int64),
            bytes=np.array(columns["bytes"], np.int64),
            nats=np.array(columns["nats"], np.float64),
        )
        score = EvalResult(*(facts[name] for name in ("bpb", "loss", "tokens", "bytes", "seconds")))
        made = Result(facts["source"], facts["how"], score, documents, facts["note"], facts["compile_seconds"])
        _check(made)
        return made
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise DataError(f"{path} is not a result that `pgolf eval -o` saved") from None


def _check(made: Result) -> None:
    """ValueError unless the score is that of the documents and everything has its type."""
    score, documents = made.score, made.documents
    if {column.shape for column in vars(documents).values()} != {(len(documents),)} or not len(documents):
        raise ValueError
    texts, counts = (made.source, made.how, made.note or ""), (score.tokens, score.bytes)
    if not all(isinstance(text, str) for text in texts) or not all(type(count) is int for count in counts):
        raise ValueError
    counted = documents.tokens.min() > 0 and documents.bytes.min() >= 0 and score.bytes > 0
    if not counted or documents.tokens.sum() != score.tokens or documents.bytes.sum() != score.bytes:
        raise ValueError
    if not np.abs(documents.nats).max() < MOST_NATS or not 0 < score.seconds < math.inf:
        raise ValueError
    bpb, loss = documents.bpb, float(documents.nats.sum()) / score.tokens
    if not math.isclose(score.bpb, bpb, rel_tol=ROUNDING) or not math.isclose(score.loss, loss, rel_tol=ROUNDING):
        raise ValueError
    if not 0 <= made.compile_seconds < math.inf:
        raise ValueError
