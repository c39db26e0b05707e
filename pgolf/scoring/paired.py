"""How sure a score is, and whether one model beats another: standard errors over documents.

Bits per byte are a ratio of two sums over documents, so neither the mean of the documents' own ratios nor the scatter
of tokens (they hang together within a document) says how sure it is. The ratio estimator's linearization does: document
i moves the ratio R = Σn / Σb by e_i = (n_i - R b_i) / Σb, and D / (D - 1) · Σ e_i² is its variance (Cochran, Sampling
Techniques, 3rd ed. 1977, chapter 6). Two models are compared on the same documents, by the differences of their e_i.

A paired difference is often a hundred times surer than either score, because the documents that
are hard for one model are hard for the other.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from pgolf.common import extras
from pgolf.errors import UsageError
from pgolf.scoring.documents import Documents

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """value: in bits per byte; standard_error; low, high: 95% confidence interval by Student's t with documents - 1
    degrees of freedom; p: two-sided, of a value of zero. All but the value are None for a single document."""

    value: float
    documents: int
    standard_error: float | None
    low: float | None
    high: float | None
    p: float | None

    def to_json(self) -> dict[str, float | None]:
        return asdict(self)


def interval(documents: Documents) -> Interval:
    """Bits per byte of a model, and how sure they are for texts like these documents."""
    return _interval(documents.bpb, _influence(documents))


def difference(first: Documents, second: Documents) -> Interval:
    """Bits per byte of `second` minus those of `first`, paired over documents. UsageError for different documents."""
    if len(first) != len(second):
        raise UsageError(
            f"results over {len(first)} and {len(second)} documents cannot be compared: score the same data"
        )
    if not ((first.tokens == second.tokens).all() or (first.bytes == second.bytes).all()):
        raise UsageError("the two results are of different documents: score the same data")
    return _interval(second.bpb - first.bpb, _influence(second) - _influence(first))


def _influence(documents: Documents) -> NDArray[np.float64]:
    """float64 [D]: how far each document moves the score, in bits per byte; the sum is 0."""
    bits, num_bytes = documents.nats / math.log(2), documents.bytes
    influence: NDArray[np.float64] = (bits - bits.sum() / num_bytes.sum() * num_bytes) / num_bytes.sum()
    return influence


def _interval(value: float, influence: NDArray[np.float64]) -> Interval:
    extras.need("scipy")
    from scipy.stats import t

    count = len(influence)
    if count < 2:
        return Interval(value, count, None, None, None, None)
    error = math.sqrt(count / (count - 1) * float(influence @ influence))
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    p = float(2 * t.sf(abs(value) / error, count - 1)) if error else float(value == 0)
    return Interval(value, count, error, value - half, value + half, p)
