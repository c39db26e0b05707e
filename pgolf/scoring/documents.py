"""What each document of a token stream costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgolf.scoring.windows import segments


@dataclass(frozen=True)
class Documents:
    """The score of each of D documents. tokens, bytes: int64 [D], targets and what they stand for; nats: float64 [D].

    A document's last target is the start of the next one: a model that is read as a stream has to say where a text ends,
    so these nats count, though the start token stands for no byte.
    """

    tokens: NDArray[np.int64]
    bytes: NDArray[np.int64]
    nats: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.nats)

    @property
    def bpb(self) -> float:
        """Bits per byte of all documents together."""
        return float(self.nats.sum() / math.log(2) / self.bytes.sum())

    def to_json(self) -> dict[str, list[float]]:
        return {"tokens": self.tokens.tolist(), "bytes": self.bytes.tolist(), "nats": self.nats.tolist()}


def per_document(
    nats: NDArray[np.floating], byte_counts: NDArray[np.integer], starts: NDArray[np.integer]
) -> Documents:
    """Sums by document. nats: [N]; byte_counts: [N + 1 or more]; starts: ascending positions of document starts.

    What comes before the first start is a document too.
    """
    total = len(nats)
    cuts = np.array([first for first, _ in segments(total, starts)])
    return Documents(
        tokens=np.diff(np.append(cuts, total)),
        bytes=np.add.reduceat(byte_counts[1 : total + 1], cuts, dtype=np.int64),
        nats=np.add.reduceat(nats, cuts, dtype=np.float64),
    )
