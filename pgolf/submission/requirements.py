"""requirements.txt of a submission: the distributions that bring what its scripts import, at the versions that are here."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, version
from pathlib import PurePosixPath

from pgolf.code.uses import imported


def foreign_imports(trees: Mapping[str, ast.Module]) -> dict[str, tuple[str, int]]:
    """Dotted name -> (script, line) of what scripts import that is neither the standard library's nor one of them."""
    ours = {PurePosixPath(name).parts[0].removesuffix(".py") for name in trees}
    known = sys.stdlib_module_names | ours | {"pgolf", ""}
    return {
        name: (script, getattr(node, "lineno", 0))
        for script, tree in trees.items()
        for node in ast.walk(tree)
        for name in imported(node)
        if name.split(".")[0] not in known
    }


def requirements(imports: Iterable[str]) -> tuple[list[str], list[str]]:
    """(lines of requirements.txt, imported packages that no installed distribution brings) for dotted names of modules."""
    brought = packages_distributions()
    lines, unknown = set(), set()
    for name in imports:
        package = name.split(".")[0]
        found = brought.get(package, [])
        for owner in _owners(name, sorted(set(found))):
            lines.add(f"{owner}=={version(owner).partition('+')[0]}")  # indexes know no local versions such as +cpu
        if not found:
            unknown.add(package)
    return sorted(lines, key=str.lower), sorted(unknown)


def _owners(name: str, candidates: Sequence[str]) -> Sequence[str]:
    """Of several distributions that share a namespace, those that have the module itself; all where that is not known."""
    if len(candidates) < 2:
        return candidates
    place = name.replace(".", "/")
    return [owner for owner in candidates if _has(owner, place)] or candidates


def _has(owner: str, place: str) -> bool:
    try:
        files = distribution(owner).files or []
    except PackageNotFoundError:
        return False
    return any(str(file).startswith((f"{place}/", f"{place}.")) for file in files)
