"""What a submission folder weighs against the limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pgolf.code import payload
from pgolf.code.script import unpacked_name
from pgolf.common.sizes import show_size
from pgolf.errors import BudgetError, UsageError

LIMIT = 16_000_000
DESCRIPTION, REQUIREMENTS = "submission.json", "requirements.txt"
UNCOUNTED = {DESCRIPTION, REQUIREMENTS, "README.md"}  # they describe the submission to people; all else counts


@dataclass(frozen=True)
class File:
    """name: path in the folder, with slashes. raw_bytes: before it was minified and compressed. counted_bytes: there. how:
    what was done to it. forms: of a script, what it weighs by the ways that entrants pack it; see `weigh.forms`."""

    name: str
    raw_bytes: int
    counted_bytes: int
    how: str = "as it is"
    forms: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Count:
    """What a folder weighs against `limit`. proof: what was done to see that it runs, a line each."""

    files: list[File]
    limit: int = LIMIT
    notes: list[str] = field(default_factory=list)
    proof: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Bytes that count."""
        return sum(file.counted_bytes for file in self.files)

    @property
    def code(self) -> int:
        """Bytes of scripts of Python among them."""
        return sum(file.counted_bytes for file in self.files if file.name.endswith(".py"))

    @property
    def passes(self) -> bool:
        """Whether they are within the limit."""
        return self.total <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Everything, the verdict included."""
        return asdict(self) | {
            "total": self.total,
            "code": self.code,
            "left_for_weights": self.limit - self.code,
            "verdict": "PASS" if self.passes else "FAIL",
        }

    def check(self) -> None:
        """Raises BudgetError unless the folder passes."""
        if not self.passes:
            over, most = self.total - self.limit, max(self.files, key=lambda f: f.counted_bytes)
            raise BudgetError(
                f"FAIL: {show_size(self.total)} are {show_size(over)} over the limit of {show_size(self.limit)}; "
                f"most of it: {most.name} {show_size(most.counted_bytes)}"
            )


def contents(folder: Path, option: str) -> dict[str, Path]:
    """Name -> path of every file of a folder. Raises UsageError for what is no folder, links, and what is no plain file."""
    if not folder.is_dir():
        raise UsageError(f"{option} {folder}: not a folder")
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise UsageError(f"{folder}: {name} is a link: a submission holds the files themselves")
        if path.is_dir():
            continue
        if not path.is_file():
            raise UsageError(f"{folder}: {name} is not a plain file")
        found[name] = path
    return found


def count(folder: Path, *, limit: int = LIMIT) -> Count:
    """Count an existing folder; see `contents`. What a script unpacked beside itself when it ran is part of the script."""
    files = contents(folder, "--check")
    copies = unpacked_copies(files)
    kept = [name for name in files if name not in UNCOUNTED | copies]
    return Count([_weighed(name, files[name]) for name in kept], limit, _notes(files, copies))


def unpacked_copies(files: Mapping[str, Path]) -> set[str]:
    """Names of files that a self-extracting script of the same folder wrote when it ran."""
    return {copy for name in files if (copy := unpacked_name(name)) in files and _is_copy(files[name], files[copy])}


def _is_copy(script: Path, copy: Path) -> bool:
    return script.suffix == ".py" and payload.inner(script.read_bytes()) == copy.read_bytes()


def _weighed(name: str, path: Path) -> File:
    size = path.stat().st_size
    inside = payload.inner(path.read_bytes(), name) if name.endswith(".py") else None
    return File(name, size, size) if inside is None else File(name, len(inside), size, "unpacks itself")


def _notes(files: dict[str, Path], copies: set[str]) -> list[str]:
    known: Sequence[str] = [name for name in files if name in UNCOUNTED]
    return [f"not counted: {name}" for name in known] + [
        f"not counted: {name}, which a script unpacked from itself when it ran" for name in sorted(copies)
    ]
