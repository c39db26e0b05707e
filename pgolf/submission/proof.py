"""A submission started in fresh processes, as a stranger would: what ends there otherwise than before export is found here."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pgolf
from pgolf.errors import DataError, UsageError

IMPORT_SECONDS, SMOKE_SECONDS = 120, 600
RUNNING = "still running"
_NAMED_ALIKE = ("NameError", "UnboundLocalError")  # their messages hold names of local variables, which are shortened


@dataclass(frozen=True)
class Start:
    """How scripts ended when they were imported. ends: script -> "Type: message", or None for a good end. weights: digest of
    what pgolf.load gave, an error, or None where that was not tried."""

    ends: dict[str, str | None]
    weights: str | None


@contextmanager
def scratch(files: Mapping[str, bytes], beside: Path | None = None) -> Iterator[Path]:
    """A folder of these files that vanishes, for trial starts; beside: a folder of which all else is linked into it."""
    with tempfile.TemporaryDirectory(prefix="pgolf-trial-") as place:
        folder = Path(place) / "submission"
        folder.mkdir()
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        for other in sorted(beside.iterdir()) if beside else ():
            if not (folder / other.name).exists():
                (folder / other.name).symlink_to(other.absolute())
        yield folder


def imports(folder: Path, scripts: Sequence[str], artifact: str | None, *, hides: bool) -> Start:
    """Import scripts of a scratch folder one after the other in one fresh process, under a name other than __main__.

    Nothing is written outside of the folder's parent, no network is used, no GPU is seen; hides: pgolf is not to be found.
    """
    out = folder.parent / "ends.json"
    out.unlink(missing_ok=True)
    starter = Path(__file__).with_name("starter.py")
    environment = _environment(folder, hides) | {"PGOLF_TRIAL_ROOT": str(folder.parent), "CUDA_VISIBLE_DEVICES": ""}
    code, _ = _run([str(starter), str(out), artifact or "-", *scripts], folder, environment, IMPORT_SECONDS)
    if code is None or not out.exists():
        end = RUNNING if code is None else f"the process ended with exit code {code}"
        return Start(dict.fromkeys(scripts, end), None)
    facts = json.loads(out.read_text(encoding="utf-8"))
    return Start({name: _even(end, folder) for name, end in facts["ends"].items()}, facts.get("weights"))


def compare(name: str, before: str | None, after: str | None) -> str:
    """One line on how an exported script starts. Raises DataError where it ends otherwise than the original."""
    if RUNNING in {before, after}:
        return (
            f"{name}: compiled; imported for {IMPORT_SECONDS} s without an end (does it train outside of a main guard?)"
        )
    if before == after or (before and after and before.split(":")[0] == after.split(":")[0] in _NAMED_ALIKE):
        how = "to the end" if after is None else f"as far as the original: {_short(after)}"
        return f"{name}: compiled; imported {how}"
    raise DataError(
        f"{name}: exported, its import ends with {_short(after)}; before, with {_short(before)}. If it lacks a file, give it by "
        "--script or --with-data; if shortening did it, a line '# pgolf: as is' in the script keeps it from that"
    )


def smoke(folder: Path, script: str, words: str, *, hides: bool) -> str:
    """Run a script of a scratch folder as the submission's. Raises UsageError (words), DataError unless it ends well."""
    try:
        arguments = shlex.split(words)
    except ValueError as error:
        raise UsageError(f"--smoke {words!r}: {error}") from None
    code, said = _run([script, *arguments], folder, _environment(folder, hides), SMOKE_SECONDS)
    command = f"python {script} {words}".strip()
    if code == 0:
        return f"{command}: ran to the end in a fresh process" + (" without pgolf" if hides else "")
    last = [line for line in said.splitlines() if line.strip()][-1:] or ["it said nothing"]
    how = f"did not end within {SMOKE_SECONDS} s" if code is None else f"ended with exit code {code}"
    raise DataError(f"{command}: {how}: {_short(last[0])}")


def _environment(folder: Path, hides: bool) -> dict[str, str]:
    """Of a trial start: the guard in it, the caches of compilers beside the folder."""
    guard = folder.parent / "guard"
    guard.mkdir(exist_ok=True)
    (guard / "sitecustomize.py").write_bytes(Path(__file__).with_name("guard.py").read_bytes())
    caches = (
        "TMPDIR",
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
        "XDG_CACHE_HOME",
        "MPLCONFIGDIR",
        "NUMBA_CACHE_DIR",
    )
    (folder.parent / "cache").mkdir(exist_ok=True)
    paths = [str(guard), *filter(None, [os.environ.get("PYTHONPATH")])]
    paths += [] if hides else [str(Path(pgolf.__file__).parents[1])]
    return os.environ | {
        **dict.fromkeys(caches, str(folder.parent / "cache")),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PGOLF_TRIAL_HIDES": str(int(hides)),
    }


def _run(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: int
) -> tuple[int | None, str]:
    """(exit code, what it said on stderr) of Python; the code is None where it had to be stopped."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if os.name == "posix":  # with all that it started
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
        said.seek(max(0, said.seek(0, os.SEEK_END) - 10_000))
        return code, said.read().decode("utf-8", "replace")


def _even(end: str | None, folder: Path) -> str | None:
    """An error's text without what differs between two starts of the same: folders, addresses, lines, unpacked files."""
    if end is None:
        return None
    end = end.replace(f"{folder.resolve()}/", "").replace(f"{folder}/", "")
    end = re.sub(r"0x[0-9a-f]+", "0x", end)
    end = re.sub(r"\bline \d+", "line", end)
    return re.sub(r"\w+\.py\b", lambda m: m[0] if not m[0].endswith("_.py") else m[0].removesuffix("_.py") + ".py", end)


def _short(text: str | None) -> str:
    return "no error" if text is None else " ".join(text.split())[:200]
