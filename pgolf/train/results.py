"""The outcome of one evaluation, with what every document cost: printed, saved as JSON, read back and compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import DataError
from pgolf.train.bpb import EvalResult, result_of
from pgolf.train.compare import Estimate, interval
from pgolf.train.documents import Documents, per_document

COLUMNS = {"tokens": np.int64, "bytes": np.int64, "nats": np.float64}


@dataclass(frozen=True)
class Result:
    """source: what was scored; how: in which contexts; score: of all of it; documents: of each document."""

    source: str
    how: str
    score: EvalResult
    documents: Documents

    @property
    def estimate(self) -> Estimate:
        return interval(self.documents)

    def summary(self) -> dict[str, Any]:
        """JSON without the documents."""
        score, estimate = self.score, self.estimate
        return {
            "source": self.source,
            "how": self.how,
            "bpb": score.bpb,
            "standard_error": estimate.standard_error,
            "low": estimate.low,
            "high": estimate.high,
            "loss": score.loss,
            "tokens": score.tokens,
            "bytes": score.bytes,
            "documents": len(self.documents),
            "seconds": score.seconds,
            "tokens_per_second": score.tokens_per_second,
        }

    def to_json(self) -> dict[str, Any]:
        """The summary and `per_document`: columns tokens, bytes, nats, one entry a document in the order of the data."""
        return self.summary() | {"per_document": self.documents.to_json()}


def make(
    source: str,
    how: str,
    nats: NDArray[np.floating],
    byte_counts: NDArray[np.integer],
    starts: NDArray[np.integer],
    seconds: float,
) -> Result:
    """The result of scored targets `nats` [N]; byte_counts [N + 1 or more]; documents begin at `starts`."""
    score = result_of(nats, byte_counts, seconds)
    return Result(source, how, score, per_document(nats, byte_counts, starts))


def is_result(path: Path) -> bool:
    """Whether a file is named like a saved result; checkpoints and artifacts never are."""
    return path.suffix == ".json"


def read(path: Path) -> Result:
    """A result that `pgolf eval -o` saved. Raises DataError."""
    try:
        facts = json.loads(path.read_text())
        columns = {name: np.array(facts["per_document"][name], dtype) for name, dtype in COLUMNS.items()}
        score = EvalResult(*(facts[name] for name in ("bpb", "loss", "tokens", "bytes", "seconds")))
        same_length = len({len(column) for column in columns.values()}) == 1
        if not same_length or columns["tokens"].sum() != score.tokens or columns["bytes"].sum() != score.bytes:
            raise ValueError
        return Result(facts["source"], facts["how"], score, Documents(**columns))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is not a result that `pgolf eval -o` saved") from None
