"""A whole submission folder, as a reviewer goes through it: sizes, claims, how it starts, and what its scripts look like."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pgolf.code import payload
from pgolf.errors import DataError, UsageError
from pgolf.submission import claims, proof
from pgolf.submission.check import main_script
from pgolf.submission.count import DESCRIPTION, LIMIT, REQUIREMENTS, contents, unpacked_copies
from pgolf.submission.findings import Finding, distinct
from pgolf.submission.signs import local_modules
from pgolf.submission.suspicions import suspicions

LOGS = {".log", ".txt"}
WEIGHTS = {
    ".bin", ".br", ".ckpt", ".int6", ".int8", ".lzma", ".npy", ".npz", ".pgolf", ".pt", ".pth", ".ptz", ".safetensors", ".xz",
    ".zst",
}  # fmt: skip
OFFLINE = "a submission runs without a network"  # what the guard of a trial start says


@dataclass(frozen=True)
class Audit:
    """findings: what to look at; notes: what was looked at, and what could not be; scripts: names of the main script and of those
    that it uses."""

    findings: list[Finding]
    notes: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """With the verdict."""
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "notes": self.notes,
            "verdict": "FAIL" if self.findings else "PASS",
        }


def audit(
    folder: Path, *, limit: int = LIMIT, script: str | None = None, run: bool = True, hides: bool = True
) -> Audit:
    """Go through a folder. script: its main one, see `main_script`; run: import that in a fresh process under a guard, without
    pgolf if `hides`. Raises UsageError for what is no folder, and where the main script is not clear."""
    files = contents(folder, "audit")
    names = scripts_of(files)
    if not names:
        raise UsageError(f"{folder}: has no script of Python to audit")
    return audit_files(files, main_script(names, script), limit=limit, run=run, hides=hides)


def scripts_of(files: Mapping[str, Path]) -> list[str]:
    """Names of the scripts of Python, without what one of them unpacked beside itself."""
    copies = unpacked_copies(files)
    return [name for name in files if name.endswith(".py") and name not in copies]


def audit_files(
    files: Mapping[str, Path], main: str, *, limit: int = LIMIT, run: bool = True, hides: bool = True
) -> Audit:
    """The same of files that were chosen from a folder, name -> path; main: the main one of their scripts."""
    names = scripts_of(files)
    findings, trees, unread = _trees({name: files[name].read_bytes() for name in names})
    used = _reached(main, trees)
    together = ast.Module([statement for name in used for statement in trees[name].body], [])
    findings += [f for name in used for f in suspicions(name, trees[name], together)]
    findings += _requirements(files)
    findings += _sizes(files, used or {main}, limit)
    if DESCRIPTION in files:
        logs = claims.read_logs(_logs(files))
        code = files[main].stat().st_size
        findings += claims.check_claims(files[DESCRIPTION].read_bytes(), logs, code, main, limit)
    else:
        findings.append(Finding(DESCRIPTION, 0, "claim", "is not in the folder"))
    notes = [*unread, f"{main} and {len(used) - 1} scripts that it uses were read"] if main in trees else unread
    if run and main in trees:
        found, note = _start({name: path.read_bytes() for name, path in files.items()}, main, hides)
        findings += found
        notes.append(note)
    return Audit(distinct(findings), notes, list(used or [main]))


def _trees(scripts: Mapping[str, bytes]) -> tuple[list[Finding], dict[str, ast.Module], list[str]]:
    """The syntax trees of scripts, of what is inside where they unpack themselves; a finding for each that has none, or a note
    where a later Python may read it."""
    findings, trees, notes = [], {}, []
    for name, raw in scripts.items():
        try:
            trees[name] = ast.parse(payload.inner(raw, name) or raw, name)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None) or 0
            if sys.version_info < (3, 12) and "f-string" in str(error):
                notes.append(f"{name} was not read: line {line} needs Python 3.12")
            else:
                findings.append(Finding(name, line, "start", f"is not Python ({error})"))
    return findings, trees, notes


def _reached(main: str, trees: Mapping[str, ast.Module]) -> dict[str, None]:
    """The main script and those of the folder that it imports or names, through any number of steps, in that order."""
    found, waiting = dict[str, None](), [main] if main in trees else []
    while waiting:
        name = waiting.pop(0)
        found[name] = None
        beside = PurePosixPath(name).parent
        spoken = {str(place / module) for module in local_modules(trees[name]) for place in (beside, PurePosixPath())}
        waiting += sorted((spoken & trees.keys()) - found.keys() - set(waiting))
    return found


def _requirements(files: Mapping[str, Path]) -> list[Finding]:
    """Requirements that do not come from an index: their code is in no count and under nobody's eyes."""
    if REQUIREMENTS not in files:
        return []
    lines = files[REQUIREMENTS].read_text("utf-8", "replace").splitlines()
    return [
        Finding(REQUIREMENTS, number, "outside", f"installs from elsewhere than an index: {line.strip()[:80]}")
        for number, line in enumerate(lines, 1)
        if not line.lstrip().startswith(("#", "--index-url", "--extra-index-url", "-f", "--find-links"))
        and any(sign in line for sign in ("git+", "://", "file:"))
    ]


def _sizes(files: Mapping[str, Path], used: Iterable[str], limit: int) -> list[Finding]:
    """The scripts that run and the weights in the folder against the cap."""
    weights = [name for name, path in files.items() if path.suffix in WEIGHTS]
    sizes = {name: files[name].stat().st_size for name in [*used, *weights]}
    total = sum(sizes.values())
    if total <= limit:
        return []
    most = max(sizes, key=lambda name: sizes[name])
    text = f"scripts and weights have {total:,} B, over the cap of {limit:,} B; most of it here: {sizes[most]:,} B"
    return [Finding(most, 0, "size", text)]


def _logs(files: Mapping[str, Path]) -> dict[str, str]:
    return {
        name: path.read_text("utf-8", "replace")
        for name, path in files.items()
        if path.suffix in LOGS and name != REQUIREMENTS
    }


def _start(files: Mapping[str, bytes], main: str, hides: bool) -> tuple[list[Finding], str]:
    with proof.scratch(files) as folder:
        try:
            end = proof.imports(folder, [main], None, hides=hides).ends[main]
        except DataError as error:
            return [Finding(main, 0, "start", str(error))], ""
    if end and OFFLINE in end:
        return [
            Finding(main, 0, "network", "its import reached for the network")
        ], f"{main}: imported as far as a network call"
    how = "to the end" if end is None else f"until {' '.join(end.split())[:160]}"
    return [], f"{main}: imported under a guard {how}"
