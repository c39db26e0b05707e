"""What of a folder is to be looked at by hand, and why: a line each, the gravest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pgolf.submission.findings import KINDS, Finding
from pgolf.triage.row import Row
from pgolf.triage.scores import NEAR, Scores

GAIN = 0.06  # bits per byte: more than windows and test-time training gain in evaluation, honestly done
APART = 0.01  # bits per byte between scores of the same code


class Neighbour(NamedTuple):
    """The folder whose code is most alike, and the Jaccard of their shingles."""

    row: Row
    share: float


def look(row: Row, limit: int, nearest: Neighbour | None = None) -> list[str]:
    """Reasons to look at a folder by hand."""
    return [*_size(row, limit), *_score(row), *_findings(row.findings), *row.unread, *_alike(row, nearest)]


def _size(row: Row, limit: int) -> Iterator[str]:
    if row.total_bytes is not None and row.total_bytes > limit:
        yield f"{row.total_bytes:,} B are over the limit of {limit:,} B"


def _score(row: Row) -> Iterator[str]:
    found = row.scores
    if found.said is None:
        yield "claims no score"
    if found.recomputed is None:
        yield "no log is here that shows a score after packing"
        return
    if disagrees(found):
        yield f"claims {found.said:.5f}, and {_runs(found)} {found.recomputed:.5f} ({found.kind})"
    if found.before is not None and found.before - found.recomputed > GAIN:
        gain = found.before - found.recomputed
        yield f"scores {gain:.3f} lower after packing than before ({found.before:.4f}): evaluation does more than measure"


def disagrees(found: Scores) -> bool:
    """Whether a claim is another number than what the logs give."""
    return None not in {found.said, found.recomputed} and abs(found.said - found.recomputed) > NEAR  # type: ignore[operator]


def _runs(found: Scores) -> str:
    return "its log gives" if found.runs == 1 else f"the mean of {found.runs} runs in its logs is"


def _findings(findings: list[Finding]) -> Iterator[str]:
    """The first finding of each kind, with the number of the others."""
    kinds: Mapping[str, list[Finding]] = {kind: [f for f in findings if f.kind == kind] for kind in KINDS}
    for same in filter(None, kinds.values()):
        more = f", and {len(same) - 1} more" if len(same) > 1 else ""
        yield f"audit: {same[0]}{more}"


def _alike(row: Row, nearest: Neighbour | None) -> Iterator[str]:
    if nearest is None:
        return
    mine, theirs = row.scores.said, nearest.row.scores.said
    if mine is not None and theirs is not None and abs(mine - theirs) > APART and nearest.share >= 0.95:
        yield f"has {nearest.share:.0%} of the code of {nearest.row.folder}, and its score is {abs(mine - theirs):.3f} away"
