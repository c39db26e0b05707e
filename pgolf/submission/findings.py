"""One thing in a submission folder that a reviewer should look at, and where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

KINDS = {
    "size": "over the cap",
    "claim": "submission.json says other than the files or the logs",
    "start": "the script does not start",
    "network": "reaches for the network",
    "training": "validation text in training or calibration",
    "order": "learns from text before it is scored",
    "probability": "what is scored may be no probability",
    "ngram": "statistics of the text in place of a model",
    "outside": "reads what is not counted",
    "score": "the score does not hold when it is made again",
}


@dataclass(frozen=True, order=True)
class Finding:
    """kind: of KINDS. file: name in the folder; line: from 1, 0 for the file as a whole. text: what was seen there."""

    file: str
    line: int
    kind: str
    text: str

    def __post_init__(self) -> None:
        assert self.kind in KINDS

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        place = f"{self.file} line {self.line}" if self.line else self.file
        return f"{self.kind}: {place}: {self.text}"


def distinct(findings: Iterable[Finding]) -> list[Finding]:
    """In the order of files and lines, one of each kind a line."""
    found = {(f.file, f.line, f.kind): f for f in reversed(sorted(findings))}
    return sorted(found.values())
