"""Is a score honest? The usual violations of the contest as experiments on the scorer that made the figure.

A scorer is any function from tokens [N] to the nats of their N - 1 targets: windows, test-time training, or a user's
own evaluator. The checks only change tokens and score again, so no scorer has to be trusted or opened. They are no
proof: who cheats only now and then, or knows an audit when it sees one, may pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.common.progress import Advance
from pgolf.data.encoding import encoder
from pgolf.data.shards import document_starts
from pgolf.errors import DataError
from pgolf.scoring.windows import segments

Score = Callable[[NDArray[np.integer]], NDArray[np.floating]]  # tokens [N] -> nats of the targets [N - 1]

SUM_TOLERANCE = 1e-3  # far above the rounding of float32, far below what is worth cheating for
NATS_TOLERANCE = 1e-3  # likewise: the same sums in another order are not the same to the bit
PLACES = 8  # of which the most telling is taken
TAIL = 8  # tokens after the one that is substituted
FIRST_DOCUMENTS, HEADS = 64, 3  # the audit's text is made of the longest HEADS among the FIRST_DOCUMENTS
CUTS = (0.23, 0.52, 0.81)  # of the sample: where the future begins


@dataclass(frozen=True)
class Check:
    """One experiment. number: what was measured, in the unit that `detail` names; passed: None if it could not be done."""

    name: str
    passed: bool | None
    number: float | None
    detail: str

    @property
    def verdict(self) -> str:
        return {True: "PASS", False: "FAIL", None: "SKIP"}[self.passed]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Sample:
    """What the experiments change: `tokens` [N], in which documents start at `starts`. The token that is substituted
    stands behind at least `prefix` others.

    crosses: targets after a document's end that may still see it; 0 where documents must not see each other.
    """

    tokens: NDArray[np.integer]
    starts: NDArray[np.integer]
    prefix: int
    crosses: int

    def __post_init__(self) -> None:
        if len(self.tokens) < max(self.prefix + 1 + TAIL, 8):
            raise DataError(f"{len(self.tokens)} tokens are too few for an audit: score more")


def sample(tokens: NDArray[np.integer], bos: int, *, prefix: int, crosses: int) -> Sample:
    """A short text for the experiments: three contexts of the stream where contexts cross documents, else the heads of
    the longest of its first documents. For prefix and crosses see `Sample`."""
    prefix = max(1, min(prefix, len(tokens) - 1 - TAIL))
    if crosses:
        text = np.array(tokens[: 3 * crosses + 2 * TAIL])
    else:
        runs = segments(len(tokens), document_starts(tokens, bos))[:FIRST_DOCUMENTS]
        longest = sorted(runs, key=lambda run: run[0] - run[1])[:HEADS]
        text = np.concatenate([tokens[first : min(end, first + 2 * prefix + TAIL)] for first, end in longest])
    return Sample(text, document_starts(text, bos), prefix, crosses)


def scorer_checks(score: Score, text: Sample, vocab_size: int, progress: Advance = lambda *_: None) -> list[Check]:
    """The experiments that need nothing but the scorer. progress: called with (scored substitutes, of all)."""
    honest = score(text.tokens)
    return [
        probabilities(score, text, honest, vocab_size, progress),
        future(score, text, honest),
        repeated(score, text, honest),
        documents(score, text, honest),
    ]


def probabilities(
    score: Score,
    text: Sample,
    honest: NDArray[np.floating],
    vocab_size: int,
    progress: Advance = lambda *_: None,
) -> Check:
    """Every piece of the vocabulary in the place of one token: what the scorer gives each must sum to 1.

    The sum is above 1 not only for probabilities that are not normalised: whoever has seen the token itself, by peeking
    or by learning before scoring, gives each of them too much.
    """
    place, total = _telling(text, honest, vocab_size), 0.0
    for piece in range(vocab_size):
        changed = np.array(text.tokens[: place + 1 + TAIL])
        changed[place] = piece
        total += float(np.exp(-np.float64(score(changed)[place - 1])))
        progress(piece + 1, vocab_size)
    passed = abs(total - 1) <= SUM_TOLERANCE
    return Check("probabilities", passed, total, f"sum over all {vocab_size} pieces as token {place} of a text")


def _telling(text: Sample, honest: NDArray[np.floating], vocab_size: int) -> int:
    """The place after a token that came before, for caches to know it, whose own token is neither foreseen nor a great
    surprise: half the nats of blind guessing.

    In the midst of the text, where there is something to peek at; and where the scorer is undecided, for who is sure gives
    nearly all to one piece, and what others get too much is lost in rounding.
    """
    seen = [text.tokens[place - 1] in text.tokens[: place - 1] for place in range(len(text.tokens))]
    stop = min([text.prefix + 2 * PLACES, len(text.tokens) - TAIL, *text.starts[text.starts > text.prefix]])
    places = range(text.prefix, max(stop, text.prefix + 1), 2)
    doubt = math.log(vocab_size) / 2
    return min(places, key=lambda place: (not seen[place], abs(float(honest[place - 1]) - doubt)))


def future(score: Score, text: Sample, honest: NDArray[np.floating]) -> Check:
    """Scores must not change when later tokens do."""
    worst = 0.0
    for cut in (int(share * len(text.tokens)) for share in CUTS):
        changed = score(_changed(text, slice(cut + 1, None)))
        worst = max(worst, _apart(honest[:cut], changed[:cut]))
    return _unmoved("future", worst, "largest change of a score, in nats, when later tokens change")


def run(score: Score, tokens: NDArray[np.integer], nats: NDArray[np.floating], length: int) -> Check:
    """The first `length` of the scores `nats` [N - 1] that made the figure must be those of a text that ends there.

    It ties the figure itself to the experiments, which are made on a short text of their own.
    """
    length = min(length, max(1, len(nats) // 2))
    worst = _apart(nats[:length], score(tokens[: length + 1]))
    return _unmoved(
        "run", worst, f"largest change of the figure's own first {length:,} scores, in nats, if nothing follows"
    )


def repeated(score: Score, text: Sample, honest: NDArray[np.floating]) -> Check:
    """Scoring twice must give the same: nothing is remembered between two runs."""
    return _unmoved("memory", _apart(honest, score(text.tokens)), "largest change of a score, in nats, the second time")


def documents(score: Score, text: Sample, honest: NDArray[np.floating]) -> Check:
    """Scores must not change when other documents do; where contexts may cross documents, when what lies further back than
    a context does."""
    if text.crosses:
        edge = len(text.tokens) - 1 - text.crosses
        border, what = min(edge, len(text.tokens) // 3), f"tokens more than {text.crosses} back"
    else:
        inner = text.starts[text.starts > 0]
        border, what = int(inner[-1]) if len(inner) else 0, "other documents"
    if border < 1:
        return Check("documents", None, None, "the text holds a single document or context")
    changed = score(_changed(text, slice(0, border)))
    begin = border + text.crosses
    detail = f"largest change of a score, in nats, when {what} change"
    return _unmoved("documents", _apart(honest[begin:], changed[begin:]), detail)


def text_bytes(
    tokens: NDArray[np.integer],
    byte_counts: NDArray[np.integer],
    bos: int,
    tokenizer: str | Path | None,
    total: int,
) -> Check:
    """Bytes must be those of the text. tokens, byte_counts: [N]; the documents of the first `total` targets are decoded
    whole, since a cut may fall into a character."""
    if tokenizer is None:
        return Check("bytes", None, None, "needs --tokenizer to decode the text")
    decode = encoder(tokenizer).decode
    counted = real = 0
    for first, end in segments(len(tokens), document_starts(tokens, bos)):
        if first >= total:
            break
        counted += int(byte_counts[first:end].sum(dtype=np.int64))
        real += len(decode(tokens[first:end].tolist()).encode())
    return Check("bytes", counted == real, counted - real, f"bytes counted ({counted:,}) beyond those of the text")


def size(artifact: int | None, code: int, cap: int) -> Check:
    """Artifact and code must fit the cap together. artifact: bytes, None if what is scored is no artifact."""
    if artifact is None:
        return Check("size", None, None, "a checkpoint is scored, not an artifact")
    detail = f"bytes: artifact {artifact:,} and code {code:,} under the cap of {cap:,}"
    return Check("size", artifact + code <= cap, artifact + code, detail)


def failed(checks: Sequence[Check]) -> list[str]:
    """Names of the checks that failed."""
    return [check.name for check in checks if check.passed is False]


def _changed(text: Sample, where: slice) -> NDArray[np.integer]:
    """The text with other pieces in `where`, drawn from the text; documents start where they did."""
    changed, generator = np.array(text.tokens), np.random.default_rng(0)
    inside = np.zeros(len(changed), bool)
    inside[where] = True
    inside[text.starts] = False
    pool = np.delete(text.tokens, text.starts)
    changed[inside] = generator.choice(pool, int(inside.sum()))
    return changed


def _apart(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    return float(np.abs(np.float64(one) - np.float64(other)).max(initial=0.0))


def _unmoved(name: str, worst: float, detail: str) -> Check:
    return Check(name, worst <= NATS_TOLERANCE, worst, detail)
