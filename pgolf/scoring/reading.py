"""How a text is read when it is scored: which context every token has, and whether the model learns on the way.

One `Reading` makes the figure and is what the audit examines, so both see the same scorer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pgolf.common.progress import Advance
from pgolf.data.shards import document_starts
from pgolf.errors import UsageError
from pgolf.models.logits import logits_of
from pgolf.scoring.bpb import Losses, score_windows
from pgolf.scoring.contexts import harmless_length
from pgolf.scoring.ttt import TTTSettings, score_and_learn
from pgolf.scoring.windows import segments

AUDIT_PREFIX = 37  # tokens before the one that the audit substitutes: little to compute
INTO_CHUNK = 3  # with test-time training the substituted token is one of the first that profit from a step


@dataclass(frozen=True)
class Reading:
    """seq_len: longest context. stride: of a sliding window, None: disjoint. documents: contexts do not cross from one
    document to the next. ttt: test-time training, which never crosses documents and slides by its chunk."""

    seq_len: int = 1024
    stride: int | None = None
    documents: bool = False
    ttt: TTTSettings | None = None

    def __post_init__(self) -> None:
        if self.ttt and self.stride:
            raise UsageError(
                "--stride and --ttt exclude each other: test-time training slides by its chunk, --ttt-chunk"
            )

    @property
    def within_documents(self) -> bool:
        return self.documents or self.ttt is not None

    @property
    def crosses(self) -> int:
        """Targets after a document's end that may see it."""
        return 0 if self.within_documents else self.seq_len

    @property
    def audit_prefix(self) -> int:
        """Odd, like the places tried after it: windows of an even number of tokens do not end there."""
        return (self.ttt.chunk + INTO_CHUNK) | 1 if self.ttt else AUDIT_PREFIX

    def __str__(self) -> str:
        if self.ttt:
            learning = f"rank {self.ttt.rank}, chunk {self.ttt.chunk}, learning rate {self.ttt.lr:g}"
            return f"test-time training, context {self.seq_len}, {learning}"
        within = " within documents" if self.documents else ""
        return f"windows of {self.seq_len}, stride {self.stride or self.seq_len}{within}"

    def note(self, nats: NDArray[np.floating], starts: NDArray[np.integer]) -> str | None:
        """What a user should know of scored targets `nats` [N]: disjoint windows show whether the context is too long."""
        if self.ttt or self.stride not in (None, self.seq_len):
            return None
        length = harmless_length(nats, segments(len(nats), starts if self.documents else None), self.seq_len)
        if length is None:
            return None
        return f"the loss rises beyond {length} tokens of context, as if the model was trained on no more: try --seq-len {length}"

    def score(
        self,
        model: nn.Module,
        tokens: NDArray[np.integer],
        bos: int,
        *,
        logits: Callable[..., Any] | str | None = None,
        losses: Losses | None = None,
        batch_size: int = 8,
        progress: Advance | None = None,
    ) -> NDArray[np.float32]:
        """float32 [N - 1]: nats of every target of `tokens` [N], in which `bos` starts a document.

        logits: as in `pgolf.models.logits.logits_of`; losses, batch_size: as in `bpb.score_windows`. In a process group every
        rank calls this: windows are shared among them, test-time training is not.
        Raises DataError, ModelError, UsageError.
        """
        if self.ttt:
            return score_and_learn(
                model,
                tokens,
                document_starts(tokens, bos),
                seq_len=self.seq_len,
                settings=self.ttt,
                logits=logits,
                progress=progress,
            )
        return score_windows(
            logits_of(model, logits),
            tokens,
            seq_len=self.seq_len,
            stride=self.stride,
            starts=document_starts(tokens, bos) if self.documents else None,
            batch_size=batch_size,
            losses=losses,
            progress=progress,
            shared=True,
        )
