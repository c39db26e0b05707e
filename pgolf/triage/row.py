"""One row of a triage: what is to be said of one submission folder."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pgolf.code import payload
from pgolf.errors import PgolfError, UsageError, printable
from pgolf.submission.audit import Audit, audit_files, scripts_of
from pgolf.submission.check import main_script
from pgolf.submission.findings import Finding
from pgolf.triage.folders import Folder
from pgolf.triage.scores import LOGS, Scores, description, scores, total_bytes
from pgolf.triage.script import Code, code_of, commanded, defaults, logged
from pgolf.triage.techniques import seen

PACKED_BYTES, PACKED_TOKENS = 4000, 400  # a script of so many bytes and so few tokens is packed
SETTINGS_BYTES = 1 << 20  # of a log: where its settings stand


@dataclass(frozen=True)
class Row:
    """code_bytes: of the main script and those it uses, as they lie there; tokens: of these. total_bytes: what logs print, or
    else what is claimed. scripts: all that were read, the main one first. techniques: group -> name -> "on", or the setting
    that turns it off. unread: what of the code was not read, and why. Sizes are None where nobody says."""

    folder: str
    scores: Scores
    code_bytes: int | None
    total_bytes: int | None
    scripts: list[str]
    techniques: dict[str, dict[str, str]]
    findings: list[Finding]
    unread: list[str]
    notes: list[str]
    tokens: list[str] = field(repr=False)

    @property
    def count(self) -> int:
        """Techniques that are on."""
        return sum(how == "on" for names in self.techniques.values() for how in names.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the tokens."""
        model = None if None in {self.total_bytes, self.code_bytes} else self.total_bytes - self.code_bytes  # type: ignore[operator]
        return {
            "folder": self.folder, "scores": asdict(self.scores) | {"said": self.scores.said}, "code_bytes": self.code_bytes,
            "model_bytes": model, "total_bytes": self.total_bytes, "scripts": [printable(name) for name in self.scripts],
            "techniques": self.techniques, "seen": self.count, "findings": [finding.to_json() for finding in self.findings],
            "notes": [*self.unread, *self.notes],
        }  # fmt: skip


def row_of(folder: Folder, limit: int) -> Row:
    """Read one folder. limit: bytes of code and model together."""
    facts = description(folder)
    readme = "\n".join(
        folder.text(name) for name in list(folder.files) if PurePosixPath(name).name.lower() == "readme.md"
    )
    said = scores(folder, facts, readme)
    unread: list[str] = []
    audit, scripts = _audited(folder, readme, limit, unread)
    codes = {name: _code(folder, name, unread) for name in scripts}
    text = "\n".join(code.text for code in codes.values())
    known = defaults(text)
    return Row(
        folder=folder.name,
        scores=said,
        code_bytes=sum(folder.sizes[name] for name in audit.scripts) if audit.scripts else None,
        total_bytes=said.size or total_bytes(facts),
        scripts=scripts,
        techniques=seen(text, known | _ran_with(folder, readme, known)),
        findings=audit.findings,
        unread=unread,
        notes=folder.notes,
        tokens=[token for name in audit.scripts for token in codes[name].tokens],
    )


def _audited(folder: Folder, readme: str, limit: int, unread: list[str]) -> tuple[Audit, list[str]]:
    """The audit of what may be read, and the names of all scripts whose techniques count: where several may be the main one,
    these too."""
    try:
        names = scripts_of(folder.files)
        if not names:
            unread.append("has no script of Python to read")
            return Audit([]), []
        main, others = _main(names, f"{_shell(folder)}\n{readme}")
        if others:
            unread.append(
                printable(
                    f"{main} is taken for the main script; {', '.join(others)} may be it as well, and was read too"
                )
            )
        found = audit_files(folder.files, main, limit=limit, run=False)
        return found, list(dict.fromkeys([*found.scripts, *others]))
    except (PgolfError, OSError, RecursionError, MemoryError) as error:  # a stranger's script may be beyond the parser
        unread.append(printable(f"was not audited: {str(error) or type(error).__name__}"))
        scripts = [name for name in folder.files if name.endswith(".py")]
        return Audit([], [], scripts), scripts


def _main(names: list[str], text: str) -> tuple[str, list[str]]:
    """(main script, others that may be it): of several trainers the one that command lines name most often."""
    trainers = [name for name in names if "/" not in name and name.startswith("train")]
    if len(trainers) > 1:
        main = max(
            trainers, key=lambda name: (len(re.findall(rf"(?<!\w){re.escape(name)}", text)), name == "train_gpt.py")
        )
        return main, [name for name in trainers if name != main]
    try:
        return main_script(names), []
    except UsageError:
        return names[0], names[1:]


def _code(folder: Folder, name: str, unread: list[str]) -> Code:
    """The code of a script, of what is inside where it unpacks itself."""
    raw = folder.bytes(name)
    try:
        inside = payload.inner(raw, name)
        code = code_of((raw if inside is None else inside).decode("utf-8-sig", "replace"))
    except (RecursionError, MemoryError) as error:
        unread.append(printable(f"{name} was not read: {type(error).__name__}"))
        return Code("", [], False)
    if not code.whole:
        unread.append(printable(f"{name} was read up to statement {code.lines:,} only: what follows is not Python"))
    elif len(raw) > PACKED_BYTES and len(code.tokens) < PACKED_TOKENS:
        unread.append(printable(f"{name} is packed in a way that cannot be read without running it"))
    return code


def _ran_with(folder: Folder, readme: str, known: dict[str, str]) -> dict[str, str]:
    """Settings that the runs had, as far as they are said: by command lines, and above them by logs."""
    found = {name: value for name, value in commanded(f"{_shell(folder)}\n{readme}").items() if name in known}
    for name in [name for name in folder.files if PurePosixPath(name).suffix in LOGS & {".log", ".txt", ".out"}]:
        found |= logged(folder.text(name)[:SETTINGS_BYTES], known)
    return found


def _shell(folder: Folder) -> str:
    return "\n".join(folder.text(name) for name in list(folder.files) if name.endswith(".sh"))
