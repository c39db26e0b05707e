"""Runs in every Python process of a trial start, as its sitecustomize: no pgolf, no network, no writing elsewhere.

It holds back mistakes, not malice: a script that means harm can get past it. Standard library only.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

_LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "", None}
_FETCHERS = {"aws", "curl", "git", "gsutil", "huggingface-cli", "pip", "pip3", "rsync", "scp", "ssh", "wget"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"}


class _Hidden:
    """Finds no pgolf, installed or not."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "pgolf" and path is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _offline(event: str, arguments: tuple[Any, ...]) -> None:
    if event in {"socket.connect", "socket.sendto"}:
        address = arguments[1]
        if isinstance(address, tuple) and address[0] not in _LOCAL and not str(address[0]).startswith("127."):
            raise PermissionError("a submission runs without a network")
    elif event == "socket.getaddrinfo" and arguments[0] not in _LOCAL and arguments[0] != os.uname().nodename:
        raise PermissionError("a submission runs without a network")
    elif event == "subprocess.Popen":
        command = arguments[1] if isinstance(arguments[1], (list, tuple)) else str(arguments[1]).split()
        if command and os.path.basename(os.fsdecode(command[0])) in _FETCHERS:
            raise PermissionError("a submission runs without a network")


def _inside(root: str) -> Callable[[str, tuple[Any, ...]], None]:
    def check(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = flags & _WRITES if isinstance(flags, int) else mode and set(mode) & set("wax+")
        else:
            path, writes = (arguments[0], event in _CHANGES) if arguments else (None, False)
        if not writes or isinstance(path, int) or path is None:
            return
        place = os.path.realpath(os.fsdecode(path))
        if not place.startswith((root + os.sep, "/dev/", "/proc/")) and place != root:
            raise PermissionError(f"a trial start writes nothing outside of the folder: {place}")

    return check


def _start() -> None:
    if os.environ.get("PGOLF_TRIAL_HIDES") == "1":
        sys.meta_path.insert(0, _Hidden())
    sys.addaudithook(_offline)
    if root := os.environ.get("PGOLF_TRIAL_ROOT"):
        sys.addaudithook(_inside(os.path.realpath(root)))


if __name__ == "sitecustomize":
    _start()
