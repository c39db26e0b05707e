"""Files written whole or not at all: a reader sees the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

import errno
import glob
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a symbolic link",
}  # fmt: skip


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with replacing(Path(path)) as file:
        file.write(text.encode())


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well, and vanishes when it does not.

    It is a temporary sibling, synced and then renamed, so a reader sees the old file or the whole new one. It is locked
    while it is written: what a killed process left behind is unlocked, and the next writer of `path` removes it.
    Raises OSError for a folder, device, pipe or socket, which a rename would take away from whoever uses it, and for a
    symbolic link: to follow it could spoil a file that nobody named, to replace it is not what was asked for.
    """
    path = Path(path)
    refuse_special(path)
    remove_abandoned(path, Path.unlink)
    try:
        name, held = locked_sibling(path, _new_file)
    except OSError as error:
        error.filename = str(path)  # nobody knows the temporary name
        raise
    try:
        with open(held, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows renames closed files only
            os.replace(name, path)
    except BaseException as error:
        name.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in {None, name, str(name)}:
            error.filename = str(path)  # a full disk does not say where
        raise


def refuse_special(path: Path) -> None:
    """Raises OSError where something that is no regular file has the name."""
    if what := not_a_file(path):
        kind = (IsADirectoryError, errno.EISDIR) if what == "a folder" else (OSError, errno.EINVAL)
        raise kind[0](kind[1], f"is {what}, a file was to be written there", str(path))


def not_a_file(path: Path) -> str:
    """What has the name `path` where it is not a regular file: "a device"; "" for a file or nothing."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def same_file(path: Path, other: Path) -> bool:
    """Whether two names lead to one file or folder, through links too, or would if it were there."""
    try:
        return path.samefile(other)
    except OSError:  # one of them is not there
        return path.resolve() == other.resolve()


def _new_file(name: Path) -> int:
    """A descriptor of a file that is new, with the permissions that the user's umask gives."""
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)


Held = TypeVar("Held", int, int | None)


def locked_sibling(path: Path, make: Callable[[Path], Held]) -> tuple[Path, Held]:
    """The name of what `make` made beside `path`, and its open descriptor, which keeps it locked; None where it cannot be."""
    while True:
        name = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        held = make(name)
        if held is not None:
            lock(held, wait=True)
        if name.exists():  # else a cleaner took it between creation and lock
            return name, held
        if held is not None:
            os.close(held)


def remove_abandoned(path: Path, remove: Callable[[Path], object]) -> None:
    """Remove what killed writers of `path` left beside it: siblings that nobody locks. One of another kind stays."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):  # gone already; or a folder on Windows, where none can be opened
            held = os.open(left, os.O_RDONLY)
            try:
                if lock(held):  # and kept until it is gone, so that nobody takes it for a new one
                    remove(left)
            finally:
                os.close(held)


def is_free(file: int) -> bool:
    """Whether nobody else has locked the open file or folder; it is locked now, where there are such locks."""
    return _locked(file) is not False


def lock(file: int, wait: bool = False) -> bool:
    """Whether the open file or folder is ours alone now; where there are no such locks it never is, and nothing is tidied up."""
    return _locked(file, wait) is True


def _locked(file: int, wait: bool = False) -> bool | None:
    """Whether it is locked by us now, rather than by somebody else; None where there are no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True
