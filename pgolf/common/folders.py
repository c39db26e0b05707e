"""A folder that is replaced whole or not at all, as `files.replacing` does for a file."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from pgolf.common.files import locked_sibling, remove_abandoned

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


def write_folder(path: Path, contents: Mapping[str, bytes]) -> None:
    """Make `path` a folder of exactly these files (relative name -> bytes), or leave everything as it was. Raises OSError."""
    try:
        with replacing_folder(path) as made:
            for name, data in contents.items():
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                with (made / name).open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)  # a full disk does not say where, and nobody knows the temporary name
        raise


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `path` when the block ends well, and vanishes when it does not.

    It is locked meanwhile, as a file is: the next writer tells what a killed process left from what is being written.
    """
    path = Path(os.path.realpath(path))  # a link to a folder stays, and what it points to is replaced
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is no folder, one was to be written there", str(path))
    _tidy(path)
    made, held = locked_sibling(path, _new_folder)
    try:
        yield made
        _put(made, path)
    finally:
        shutil.rmtree(made, ignore_errors=True)  # what came of a failure, or the folder that was replaced
        if held is not None:
            os.close(held)


def _new_folder(name: Path) -> int | None:
    name.mkdir()
    with suppress(FileNotFoundError):  # a cleaner took it already
        if os.name == "posix":  # elsewhere folders cannot be opened, so not locked
            return os.open(name, os.O_RDONLY)
    return None


def _tidy(path: Path) -> None:
    """Remove what killed writers of `path` left; put back what one of them moved aside."""
    name = glob.escape(path.name)
    for old in path.parent.glob(f".{name}.*.old"):
        if not path.exists():
            os.rename(old, path)
        shutil.rmtree(old, ignore_errors=True)
    remove_abandoned(path, partial(shutil.rmtree, ignore_errors=True))


def _put(made: Path, path: Path) -> None:
    """Give `made` the name `path`; what had it is then called `made`."""
    if not path.exists():
        try:
            os.rename(made, path)
            return
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:  # another writer was quicker
                raise
    _exchange(made, path)


def _exchange(made: Path, path: Path) -> None:
    """Give each the other's name: on Linux in one step.

    Elsewhere the earlier folder steps aside first: a kill between the two renames leaves it as .NAME.HEX.old, and the
    next writer puts it back.
    """
    if sys.platform == "linux" and _exchanged_by_the_kernel(made, path):
        return
    old = made.with_suffix(".old")
    os.rename(path, old)
    os.rename(made, path)
    with suppress(FileNotFoundError):  # another writer tidied up
        os.rename(old, made)


def _exchanged_by_the_kernel(made: Path, path: Path) -> bool:
    """By renameat2 with RENAME_EXCHANGE, Linux 3.15; False where the C library, the kernel or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(made), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE) == 0:
        return True
    if (code := ctypes.get_errno()) in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:
        return False
    raise OSError(code, os.strerror(code), str(path))
