"""A submission folder of anybody's: counted, compiled, and started in a fresh process as far as it goes here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pgolf.errors import DataError, UsageError
from pgolf.submission import proof
from pgolf.submission.count import LIMIT, Count, contents, count


def checked(
    folder: Path,
    *,
    limit: int = LIMIT,
    script: str | None = None,
    smoke: str | None = None,
    run: bool = True,
    hides: bool = True,
) -> Count:
    """Count a folder, compile its scripts, import its main one or run that with the arguments `smoke`.

    script: name of the main one, see `main_script`. run: False starts nothing. hides: without pgolf. What an import ends
    with is told and no verdict: packages and GPUs may be missing here. Raises UsageError, DataError (what does not
    compile, or a `smoke` that does not end well).
    """
    found = count(folder, limit=limit)
    files = {name: path.read_bytes() for name, path in contents(folder, "--check").items()}
    names = [file.name for file in found.files if file.name.endswith(".py")]
    for name in names:
        _compile(name, files[name])
    lines = [f"{len(names)} scripts: compiled"] if names else ["no script of Python: nothing to start"]
    if names and (run or smoke is not None):
        main = main_script(names, script)
        with proof.scratch(files) as place:
            lines.append(
                proof.smoke(place, main, smoke, hides=hides) if smoke is not None else _imported(place, main, hides)
            )
    return replace(found, proof=lines)


def _compile(name: str, raw: bytes) -> None:
    try:
        compile(raw, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise DataError(f"{name}: not a Python script ({error})") from None


def main_script(names: Sequence[str], given: str | None = None) -> str:
    """The script that a folder is run by: the one given, the only one, train_gpt.py, or the only one called train…py.

    Raises UsageError where that is not clear.
    """
    if given is not None:
        if given not in names:
            raise UsageError(f"--script {given}: the folder has no such script, only {', '.join(names)}")
        return given
    for few in (names, [n for n in names if n == "train_gpt.py"], [n for n in names if _is_trainer(n)]):
        if len(few) == 1:
            return few[0]
    raise UsageError(f"several scripts may be the main one, name it with --script: {', '.join(names)}")


def _is_trainer(name: str) -> bool:
    return "/" not in name and PurePosixPath(name).name.startswith("train")


def _imported(place: Path, main: str, hides: bool) -> str:
    end = proof.imports(place, [main], None, hides=hides).ends[main]
    if end == proof.RUNNING:
        return f"{main}: imported for {proof.IMPORT_SECONDS} s without an end"
    return (
        f"{main}: imported to the end"
        if end is None
        else f"{main}: its import ends here with {' '.join(end.split())[:200]}"
    )
