"""The submission folder: scripts that unpack themselves, the decoder inside, the model beside them, and the count.

The decoder stands in for `import pgolf`: a script that scores with `pgolf.load(...)` runs before export with pgolf
installed and after export without it; the stand-in has nothing but `load`.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from pgolf.code.script import smallest
from pgolf.code.stand_in import decoder, imported, imports_pgolf, parsed, with_decoder
from pgolf.common.folders import write_folder
from pgolf.common.sizes import show_size
from pgolf.errors import ArtifactError, BudgetError, UsageError
from pgolf.loading import dense
from pgolf.models.checkpoint import to_bytes
from pgolf.packer.format import container

LIMIT = 16_000_000
DESCRIPTION, REQUIREMENTS = "submission.json", "requirements.txt"
UNCOUNTED = {DESCRIPTION, REQUIREMENTS, "README.md"}  # they describe the submission to people; all else counts
DECODER_NEEDS = {"brotli", "numpy", "torch"}
SKELETON = {"author": "", "github_id": "", "name": "", "blurb": "", "date": "", "val_loss": None, "val_bpb": None}


@dataclass(frozen=True)
class File:
    """name: path in the folder, with slashes. raw_bytes: before it was minified and compressed. counted_bytes: there."""

    name: str
    raw_bytes: int
    counted_bytes: int


@dataclass(frozen=True)
class Count:
    """What a folder weighs against `limit`."""

    files: list[File]
    limit: int = LIMIT
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Bytes that count."""
        return sum(file.counted_bytes for file in self.files)

    @property
    def passes(self) -> bool:
        """Whether they are within the limit."""
        return self.total <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Everything, the verdict included."""
        return asdict(self) | {"total": self.total, "verdict": "PASS" if self.passes else "FAIL"}

    def check(self) -> None:
        """Raises BudgetError unless the folder passes."""
        if not self.passes:
            over, most = self.total - self.limit, max(self.files, key=lambda f: f.counted_bytes)
            raise BudgetError(
                f"FAIL: {show_size(self.total)} are {show_size(over)} over the limit of {show_size(self.limit)}; "
                f"most of it: {most.name} {show_size(most.counted_bytes)}"
            )


def export(art: Path, scripts: Sequence[Path], out: Path, *, force: bool = False, limit: int = LIMIT) -> Count:
    """Write the submission folder `out` of an artifact and the scripts that use it; the first is the one to run.

    Scripts keep their place relative to the first one's folder; files that are no Python are copied. Raises UsageError
    (names, an existing folder), DataError (a script), ArtifactError. A folder over the limit is written and counted.
    """
    if out.is_symlink() or (out.exists() and not (force and _earlier_export(out))):
        raise UsageError(f"{out} exists: give another folder with -o, or --force to replace an earlier export")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: the folder {out.absolute().parent} does not exist")
    model = _read(art)
    _try_decoder(art)
    sources = _named(scripts, art.name)
    packed = {name: _packed(name, raw) for name, raw in sources.items()}
    trees = {name: parsed(name, raw) for name, raw in sources.items() if name.endswith(".py")}
    if not any(imports_pgolf(tree) for tree in trees.values()):
        raise UsageError(
            "no --script imports pgolf: load the model with pgolf.load(...), where the decoder takes its place"
        )
    needs = sorted(DECODER_NEEDS | _foreign_imports(trees))
    contents = {**packed, art.name: model, REQUIREMENTS: "".join(f"{n}\n" for n in needs).encode()}
    files = [File(name, len(sources.get(name, data)), len(data)) for name, data in contents.items()]
    counted = Count([f for f in files if f.name not in UNCOUNTED], limit)
    sizes = {"bytes_total": counted.total, "bytes_code": sum(map(len, packed.values())), "bytes_model": len(model)}
    contents[DESCRIPTION] = (json.dumps(SKELETON | sizes, indent=2) + "\n").encode()
    write_folder(out, contents)
    return counted


def count(folder: Path, *, limit: int = LIMIT) -> Count:
    """Count an existing folder. Raises UsageError for what is no folder, links, and what is no plain file."""
    if not folder.is_dir():
        raise UsageError(f"--check {folder}: not a folder")
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise UsageError(f"{folder}: {name} is a link: a submission holds the files themselves")
        if path.is_dir():
            continue
        if not path.is_file():
            raise UsageError(f"{folder}: {name} is not a plain file")
        if name not in UNCOUNTED:
            size = path.stat().st_size
            files.append(File(name, size, size))
    return Count(files, limit, [f"not counted: {n}" for n in sorted(UNCOUNTED) if (folder / n).is_file()])


def _try_decoder(art: Path) -> None:
    """Raises ArtifactError unless the decoder loads the artifact to the bits that pgolf loads it to."""
    expected = dense.load(art)
    coder = container.parse(_read(art))[0]["coder"]
    if coder != "rans":
        raise ArtifactError(f"{art}: the decoder of a submission cannot read codes of {coder}: pack with --coder rans")
    names: dict[str, Any] = {}
    exec(compile(decoder(), "decoder", "exec"), names)
    try:
        found = names["load"](str(art), torch)
    except Exception as error:  # the decoder checks little: anything may come of what it does not know
        raise ArtifactError(
            f"{art}: the decoder of a submission cannot load it ({type(error).__name__}): do not ship it"
        ) from None
    if found.keys() != expected.keys() or any(to_bytes(found[n]) != to_bytes(t) for n, t in expected.items()):
        raise ArtifactError(f"{art}: the decoder of a submission loads other weights than pgolf does: do not ship it")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _named(scripts: Sequence[Path], model: str) -> dict[str, bytes]:
    """Name in the folder -> content. Raises UsageError for names that clash or lead out of the folder."""
    if not scripts:
        raise UsageError("export needs at least one --script FILE.py that uses the model")
    home = scripts[0].absolute().parent.resolve()
    found: dict[str, bytes] = {}
    for script in scripts:
        place = script.absolute().parent.resolve() / script.name
        name = (place.relative_to(home) if place.is_relative_to(home) else Path(script.name)).as_posix()
        if ".." in PurePosixPath(name).parts or name in {*UNCOUNTED, model} or name in found:
            raise UsageError(f"--script {script}: the folder already has a file named {name}")
        found[name] = _read(script)
    return found


def _packed(name: str, raw: bytes) -> bytes:
    """A script as it is shipped, with the decoder where it imports pgolf."""
    if not name.endswith(".py"):
        return raw
    tree = parsed(name, raw)
    if imports_pgolf(tree):
        _check_use(tree, name)
        raw = with_decoder(tree)
    return smallest(raw, name)


def _foreign_imports(trees: dict[str, ast.Module]) -> set[str]:
    """What the scripts import that is neither the standard library's nor one of them."""
    names = {name.split(".")[0] for tree in trees.values() for node in ast.walk(tree) for name in imported(node)}
    ours = {PurePosixPath(name).parts[0].removesuffix(".py") for name in trees}
    return names - sys.stdlib_module_names - ours - {"pgolf", ""}


def _check_use(tree: ast.Module, name: str) -> None:
    """Refuse what would fail when the exported script starts: imports of more of pgolf than the decoder has."""
    for node in tree.body:
        deeper = [n for n in imported(node) if n.startswith("pgolf.")]
        if isinstance(node, ast.ImportFrom) and node.module == "pgolf":
            deeper += [f"pgolf.{alias.name}" for alias in node.names if alias.name != "load"]
        if deeper:
            raise UsageError(
                f"{name} line {node.lineno}: {deeper[0]} is not in a submission, only pgolf.load is: import it where "
                "training needs it"
            )


def _earlier_export(folder: Path) -> bool:
    """Whether a folder holds a description as we write it, and no links: only such a one is replaced, others may hold work."""
    try:
        facts = json.loads((folder / DESCRIPTION).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and "bytes_model" in facts and not any(p.is_symlink() for p in folder.rglob("*"))
