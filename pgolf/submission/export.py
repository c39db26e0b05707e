"""The submission folder: scripts that unpack themselves, the decoder inside, the model beside them, and the count.

The decoder stands in for `import pgolf`: a script that scores with `pgolf.load(...)` runs before export with pgolf
installed and after export without it. What has been written has also been started: see `proof`.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

import pgolf
from pgolf.code import payload, weigh
from pgolf.code.script import unpacked_name
from pgolf.code.stand_in import SERVED, beyond, decoder
from pgolf.code.uses import imports_pgolf, parsed
from pgolf.common import extras
from pgolf.common.folders import write_folder
from pgolf.errors import ArtifactError, DataError, UsageError
from pgolf.loading import dense
from pgolf.models.checkpoint import to_bytes
from pgolf.packer.format import container
from pgolf.submission import proof
from pgolf.submission.count import DESCRIPTION, LIMIT, REQUIREMENTS, UNCOUNTED, Count, File
from pgolf.submission.datafiles import DataFile, named_files
from pgolf.submission.requirements import foreign_imports, requirements
from pgolf.submission.starter import digest_of

DECODER_NEEDS = {"brotli", "numpy", "torch"}
SKELETON = {"author": "", "github_id": "", "name": "", "blurb": "", "date": "", "val_loss": None, "val_bpb": None}


@dataclass(frozen=True)
class How:
    """How a folder is made. needs_pgolf: pgolf is installed where it runs, and is no part of it. with_data: data files that the
    scripts name are copied. smoke: arguments with which the first script must run to its end, None to import it only. prove:
    whether it is started at all."""

    needs_pgolf: bool = False
    with_data: bool = False
    smoke: str | None = None
    prove: bool = True


def export(
    art: Path, scripts: Sequence[Path], out: Path, *, force: bool = False, limit: int = LIMIT, how: How | None = None
) -> Count:
    """Write the submission folder `out` of an artifact and the scripts that use it; the first is the one to run.

    Scripts keep their place relative to the first one's folder; files that are no Python are copied. Raises UsageError
    (names, an existing folder, what pgolf has and a submission has not), DataError (a script, or how it starts),
    ArtifactError; then nothing is written. A folder over the limit is written and counted.
    """
    extras.need("python_minifier")
    how = how or How()
    _check_place(out, force)
    model = _read(art)
    if not how.needs_pgolf:
        _try_decoder(art)
    sources = _named(scripts, art.name)
    trees = {name: _tree(name, raw) for name, raw in sources.items() if name.endswith(".py")}
    _check_use(trees, how)
    home = scripts[0].absolute().parent.resolve()
    data = [file for file in named_files(trees, home) if file.name not in {*sources, *UNCOUNTED, art.name}]
    shipped = weigh.shipped(sources, installed=how.needs_pgolf)
    copied = {file.name: _read(file.path) for file in data if how.with_data and file.within}
    contents = {**{name: file.data for name, file in shipped.items()}, art.name: model, **copied}
    needs, notes = _requirements(trees, shipped, how)
    contents[REQUIREMENTS] = "".join(f"{line}\n" for line in needs).encode()
    files = [_file(name, sources, shipped, content) for name, content in contents.items() if name not in UNCOUNTED]
    notes += [_data_note(file, file.name in copied) for file in data]
    if (missing := _beyond(trees)) and not how.needs_pgolf:
        notes.append(f"without pgolf these would fail, and the trial did not come to them: {', '.join(missing)}")
    try:
        done = _prove(contents, sources, list(trees), home, art, how) if how.prove else []
    except OSError as error:
        raise DataError(f"{out}: it cannot be tried before it is written: {error.strerror or error}") from None
    counted = Count(files, limit, notes, done)
    code = counted.total - len(model)
    sizes = {"bytes_total": counted.total, "bytes_code": code, "bytes_model": len(model)}
    contents[DESCRIPTION] = (json.dumps(SKELETON | sizes, indent=2) + "\n").encode()
    write_folder(out, contents)
    return counted


def _check_place(out: Path, force: bool) -> None:
    if out.is_symlink() or (out.exists() and not (force and _earlier_export(out))):
        raise UsageError(f"{out} exists: give another folder with -o, or --force to replace an earlier export")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: the folder {out.absolute().parent} does not exist")
    if not os.access(out.absolute().parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UsageError(f"{out}: nothing can be written in the folder {out.absolute().parent}")


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
    taken = {*UNCOUNTED, model}
    for script in scripts:
        place = script.absolute().parent.resolve() / script.name
        name = (place.relative_to(home) if place.is_relative_to(home) else Path(script.name)).as_posix()
        if ".." in PurePosixPath(name).parts or name in taken or unpacked_name(name) in taken:
            raise UsageError(f"--script {script}: the folder already has a file named {name}")
        found[name] = _read(script)
        taken |= {name, unpacked_name(name)} if name.endswith(".py") else {name}
    return found


def _tree(name: str, raw: bytes) -> ast.Module:
    return parsed(name, payload.inner(raw, name) or raw)


def _check_use(trees: Mapping[str, ast.Module], how: How) -> None:
    """Refuse scripts that have no use for the model, and what would fail in them where pgolf is not installed.

    A script may hold its training too: where it runs to its end without pgolf, what it does not come to is no fault.
    """
    if not any(imports_pgolf(tree) for tree in trees.values()):
        raise UsageError(
            "no --script imports pgolf: load the model with pgolf.load(...), where the decoder takes its place"
        )
    missing = _beyond(trees)
    if missing and not how.needs_pgolf and how.smoke is None:
        served = " and ".join(f"pgolf.{name}" for name in sorted(SERVED))
        raise UsageError(
            f"a submission has only {served}, and the scripts use more: {', '.join(missing)}. Export a script that only loads "
            "and scores; or show by --smoke ARGS that it runs to its end without; or give --needs-pgolf if pgolf will be "
            "installed"
        )


def _beyond(trees: Mapping[str, ast.Module]) -> list[str]:
    return [f"{name} {use}" for name, tree in trees.items() for use in beyond(tree)]


def _requirements(
    trees: Mapping[str, ast.Module], shipped: Mapping[str, weigh.Shipped], how: How
) -> tuple[list[str], list[str]]:
    """Lines of requirements.txt, and notes on what no line could be made for."""
    imports = foreign_imports(trees)
    unpacking = {"brotli"} if any(b"import brotli;exec(" in file.data[:40] for file in shipped.values()) else set()
    lines, unknown = requirements([*imports, *unpacking, *(() if how.needs_pgolf else DECODER_NEEDS)])
    notes = []
    for package in unknown:
        script, line = next(place for name, place in imports.items() if name.split(".")[0] == package)
        notes.append(
            f"{REQUIREMENTS} lacks {package} ({script} line {line}): it is not installed here, and its distribution unknown"
        )
    if how.needs_pgolf:
        lines = sorted([*lines, f"pgolf=={pgolf.__version__}"], key=str.lower)
        notes.append(f"not counted: pgolf itself, which {REQUIREMENTS} names and the scripts import")
    return lines, notes


def _file(name: str, sources: Mapping[str, bytes], shipped: Mapping[str, weigh.Shipped], content: bytes) -> File:
    if name not in shipped:
        return File(name, len(content), len(content))
    forms = weigh.forms(name, sources[name]) if name.endswith(".py") else {}
    return File(name, len(sources[name]), len(content), shipped[name].how, forms)


def _data_note(file: DataFile, copied: bool) -> str:
    if copied:
        return f"copied and counted: {file}"
    return f"not in the folder: {file}; if it is not given there, " + (
        "--with-data copies and counts it" if file.within else "put it beside the script, by a name that leads there"
    )


def _prove(
    contents: Mapping[str, bytes], sources: Mapping[str, bytes], scripts: Sequence[str], home: Path, art: Path, how: How
) -> list[str]:
    """What was seen of the folder in fresh processes, a line each. Raises DataError where something ends otherwise."""
    hides = not how.needs_pgolf
    if how.smoke is not None:
        with proof.scratch(contents) as folder:
            return [proof.smoke(folder, scripts[0], how.smoke, hides=hides)]
    with proof.scratch(contents) as folder:
        after = proof.imports(folder, scripts, art.name, hides=hides)
    with proof.scratch({**sources, art.name: contents[art.name]}, home) as folder:
        before = proof.imports(folder, scripts, None, hides=False)
    lines = [proof.compare(name, before.ends[name], after.ends[name]) for name in scripts]
    if after.weights is not None:
        if after.weights != digest_of(dense.load(art)):
            raise ArtifactError(f"{art}: in a fresh process the exported pgolf.load gave {after.weights[:200]}")
        lines.append(
            f"{art.name}: pgolf.load of a fresh process" + (" without pgolf" if hides else "") + " gave its bits"
        )
    return lines


def _earlier_export(folder: Path) -> bool:
    """Whether a folder holds a description as we write it, and no links: only such a one is replaced, others may hold work."""
    try:
        facts = json.loads((folder / DESCRIPTION).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and "bytes_model" in facts and not any(p.is_symlink() for p in folder.rglob("*"))
