"""The score of a submission made again, beside what it claims."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pgolf.scoring.audit import Check
from pgolf.scoring.results import Result
from pgolf.submission.count import DESCRIPTION
from pgolf.submission.findings import Finding

TOLERANCE = 1e-3  # bits per byte: far above rounding, far below what is worth a claim


def findings_of(
    folder: Path, artifact: str, result: Result, checks: Sequence[Check], *, whole: bool
) -> tuple[list[Finding], list[str]]:
    """(findings, notes) of an artifact's score and of its audit; whole: whether the whole text was scored, so that the claim
    can be held against it."""
    bpb = result.score.bpb
    findings = [
        Finding(artifact, 0, "score", f"the audit's {check.name} fails: {check.number:.4g} {check.detail}")
        for check in checks
        if check.passed is False
    ]
    claimed = _claim(folder)
    if whole and claimed is not None and abs(bpb - claimed) > TOLERANCE:
        text = f"val_bpb {claimed} is claimed, and {bpb:.5f} was scored"
        findings.append(Finding(DESCRIPTION, 0, "score", text))
    return findings, [f"{artifact}: scored {bpb:.5f} bits per byte ({result.how}), {len(checks)} checks"]


def _claim(folder: Path) -> float | None:
    try:
        value = json.loads((folder / DESCRIPTION).read_bytes()).get("val_bpb")
    except (OSError, ValueError, AttributeError):
        return None
    return float(value) if isinstance(value, int | float) else None
