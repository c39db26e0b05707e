"""The submission folders of a tree, and which of their files may be read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pgolf.common.files import not_a_file
from pgolf.errors import DataError, UsageError, printable
from pgolf.submission.count import DESCRIPTION

PASSED_OVER = {".git", ".venv", "__pycache__", "node_modules", "venv"}
MOST_BYTES = {".py": 1 << 22, ".json": 1 << 22, ".md": 1 << 22, ".sh": 1 << 22}  # of what is read; of logs:
MOST_LOG_BYTES = 1 << 25


@dataclass(frozen=True)
class Folder:
    """name: what tells it from the others, printable. files: name -> path of the regular files that may be read, by name;
    sizes: of every regular file. notes: what was passed over, and why."""

    name: str
    path: Path
    files: dict[str, Path]
    sizes: dict[str, int]
    notes: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        """A file as UTF-8, what is not replaced; "" where there is none to read."""
        return self.bytes(name).decode("utf-8-sig", "replace")

    def bytes(self, name: str) -> bytes:
        """The same as it lies there; a file that cannot be opened gives nothing, and a note."""
        if name not in self.files:
            return b""
        try:
            return self.files[name].read_bytes()
        except OSError as error:
            self.notes.append(f"{printable(name)} cannot be read: {error.strerror}")
            del self.files[name]
            return b""


def found_in(roots: Iterable[Path]) -> list[Folder]:
    """Every submission folder of the trees, in order of names, each once.

    A submission is a folder with submission.json, or with a script of Python or a log where no folder above it is one, and none
    below it has a submission.json.
    UsageError for what is no folder, DataError for a tree without a submission.
    """
    every: dict[Path, tuple[Path, set[Path]]] = {}
    for root in roots:
        if not root.is_dir():
            raise UsageError(f"{root}: {'not a folder' if root.exists() else 'there is no such folder'}")
        places = _submissions(root)
        if not places:
            raise DataError(
                f"{root}: holds no submission, that is no folder with {DESCRIPTION}, a script of Python or a log"
            )
        for place in places:
            every.setdefault(place.resolve(), (place, {other for other in places if other != place}))
    shared = Path(os.path.commonpath([place.parent for place in every]))
    return [_folder(str(real.relative_to(shared)), *found) for real, found in every.items()]


def _submissions(root: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in PASSED_OVER)
        here = Path(place)
        inside = any(other == here or other in here.parents for other in found)
        if DESCRIPTION in names or (not inside and any(name.endswith((".py", ".log")) for name in names)):
            found.append(here)
    described = {place for place in found if os.path.lexists(place / DESCRIPTION)}
    return [place for place in found if place in described or not any(place in other.parents for other in described)]


def _folder(name: str, place: Path, others: set[Path]) -> Folder:
    made = Folder(printable(name), place, {}, {})
    for path in _regular(place, others, made.notes):
        file, size = path.relative_to(place).as_posix(), path.stat().st_size
        made.sizes[file] = size
        if size <= MOST_BYTES.get(path.suffix, MOST_LOG_BYTES):
            made.files[file] = path
        elif path.suffix in {*MOST_BYTES, ".log", ".txt"}:
            made.notes.append(f"{printable(file)} was not read: {size:,} B are more than such a file has")
    return made


def _regular(place: Path, others: set[Path], notes: list[str]) -> Iterator[Path]:
    """Files below a folder, without those of other submissions; what is no file of the folder itself is noted."""

    def closed(error: OSError) -> None:
        notes.append(f"{printable(os.path.relpath(error.filename, place))} cannot be opened: {error.strerror}")

    for here, folders, names in os.walk(place, onerror=closed):
        for name in sorted(folders):
            if (Path(here) / name).is_symlink():
                notes.append(f"{_said(here, name, place)} is a link, and what it leads to was not read")
        folders[:] = sorted(f for f in folders if f not in PASSED_OVER and Path(here) / f not in others)
        for name in sorted(names):
            if what := not_a_file(Path(here) / name):
                notes.append(f"{_said(here, name, place)} is {what}, and was not read")
            else:
                yield Path(here) / name


def _said(here: str, name: str, place: Path) -> str:
    return printable((Path(here) / name).relative_to(place).as_posix())
