"""How many bytes a file counts for in a submission.

The contest counts the bytes of the files as they lie in the submission folder. What is counted here is the very file that
`pgolf export` writes, so the count is the length of something that exists.
"""

from __future__ import annotations

import ast
import base64
import lzma
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import brotli

from pgolf.code import payload
from pgolf.code.minify import minified
from pgolf.code.script import extracting
from pgolf.code.stand_in import with_decoder
from pgolf.code.uses import asked, imports_pgolf, parsed
from pgolf.code.visible import Readers, readers
from pgolf.errors import UsageError

AS_IS = b"# pgolf: as is"  # a line of a script that is to be compressed but not minified


@dataclass(frozen=True)
class Shipped:
    """A file as it lies in the submission. how: what was done to it."""

    data: bytes
    how: str


def shipped(sources: Mapping[str, bytes], *, installed: bool = False) -> dict[str, Shipped]:
    """Every file of a submission as it is shipped; installed: pgolf will be, and no script needs a decoder.

    A script of Python is minified and made self-extracting where that is smaller. One that unpacks itself already stays as
    it is, unless a decoder must go into it. One that is read by its name is minified only. Raises DataError for a
    script that does not parse.
    """
    scripts = {name: raw for name, raw in sources.items() if name.endswith(".py")}
    trees = {name: parsed(name, payload.inner(raw, name) or raw) for name, raw in scripts.items()}
    among = readers(trees)
    return {
        name: _ship(name, raw, trees, among, installed) if name in trees else Shipped(raw, "as it is")
        for name, raw in sources.items()
    }


def _ship(name: str, raw: bytes, trees: Mapping[str, ast.Module], among: Readers, installed: bool) -> Shipped:
    decoding = imports_pgolf(trees[name]) and not installed
    if payload.inner(raw, name) is not None and not decoding:
        return Shipped(raw, "unpacks itself already")
    source = with_decoder(trees[name]) if decoding else payload.inner(raw, name) or raw
    how = ", the decoder inside" if decoding else ""
    if AS_IS in (line.strip() for line in raw.splitlines()):
        return Shipped(extracting(source), "self-extracting, not minified" + how)
    small = minified(source, name, among)
    forms = [Shipped(source, "as it is" + how), Shipped(small, "minified" + how)]
    if not _is_read(name, trees):
        forms.append(Shipped(extracting(small), "self-extracting" + how))
    return min(forms, key=lambda form: len(form.data))


def _is_read(name: str, trees: Mapping[str, ast.Module]) -> bool:
    """Whether the file itself matters: another script has its name as a string and may read its text, which must then be text;
    or it has its own beside __file__, which must then lead to that name."""
    file = PurePosixPath(name).name
    says = {other: any(_ends_in(word, file) for word in asked(tree)) for other, tree in trees.items()}
    return any(says[other] for other in trees if other != name) or (says[name] and "__file__" in asked(trees[name]))


def _ends_in(word: str, file: str) -> bool:
    """Whether a string is a path of a file, and no sentence that speaks of it."""
    return word.endswith(file) and not re.search(r"\s", word)


def counted(paths: Iterable[str | Path]) -> dict[str, int]:
    """Bytes that each file counts for when `pgolf export` ships them together, decoder included; see `shipped`.

    Raises UsageError if a file is not there, DataError if a script does not parse.
    """
    sources: dict[str, bytes] = {}
    for path in paths:
        if not Path(path).is_file():
            raise UsageError(f"--code {path}: no such file")
        sources[str(path)] = Path(path).read_bytes()
    return {name: len(file.data) for name, file in shipped(sources).items()}


def forms(name: str, raw: bytes) -> dict[str, int]:
    """What a script weighs by the ways that entrants pack it, in bytes: raw; minified; and minified, then compressed by zlib,
    by LZMA in base 85, by brotli, without the line that unpacks it."""
    small = minified(payload.inner(raw, name) or raw, name)
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    return {
        "raw": len(raw),
        "minified": len(small),
        "zlib": len(zlib.compress(small, 9)),
        "lzma_base85": len(base64.b85encode(lzma.compress(small, lzma.FORMAT_RAW, filters=chain))),
        "brotli": len(brotli.compress(small, brotli.MODE_TEXT, 11, 22)),
    }
