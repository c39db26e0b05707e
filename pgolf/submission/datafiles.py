"""Data files that a script names: tokenizers, sidecars, tables, found among the strings of its source."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

LONGEST = 250  # of a name


@dataclass(frozen=True)
class DataFile:
    """A file that a script names: as the script says it, where it lies, and the line that says it first."""

    name: str
    path: Path
    script: str
    line: int

    @property
    def within(self) -> bool:
        """Whether the name leads into the submission folder and so may lie there."""
        pure = PurePosixPath(self.name)
        return not pure.is_absolute() and ".." not in pure.parts

    def __str__(self) -> str:
        return f"{self.script} line {self.line} names {self.name} ({self.path.stat().st_size:,} B)"


def named_files(trees: Mapping[str, ast.Module], home: Path) -> list[DataFile]:
    """Files that exist under the names that scripts in folder `home` have as strings, in the order of the names."""
    found: dict[str, DataFile] = {}
    for script, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _may_name(node.value):
                name = str(PurePosixPath(node.value))
                if name not in found and _is_file(home / name):
                    found[name] = DataFile(name, home / name, script, node.lineno)
    return [found[name] for name in sorted(found)]


def _may_name(text: str) -> bool:
    return 0 < len(text) <= LONGEST and text.isprintable() and not text.endswith("/")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
