"""How many bytes a file counts for in a submission.

The contest counts the bytes of the files as they lie in the submission folder. What is counted here is the very file that
`pgolf export` writes, so the count is the length of something that exists.
"""

from __future__ import annotations

from pathlib import Path

from pgolf.code.script import smallest
from pgolf.code.stand_in import imports_pgolf, parsed, with_decoder
from pgolf.errors import UsageError


def counted_bytes(path: str | Path) -> int:
    """Bytes that a file counts for: a Python script as its self-extracting form if that is smaller, others as they are.

    A script that imports pgolf has the decoder in it. Raises UsageError if there is no such file, DataError if a script
    does not parse.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"--code {path}: no such file")
    raw = path.read_bytes()
    if path.suffix != ".py":
        return len(raw)
    tree = parsed(str(path), raw)
    return len(smallest(with_decoder(tree) if imports_pgolf(tree) else raw, str(path)))
