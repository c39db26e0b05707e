"""Parts by name: our own, those registered in this process, and those of other packages' entry points."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from pgolf.errors import PluginError, UsageError

Part = TypeVar("Part")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")  # what stands between the commas, colons and dots of settings


class Registry(Mapping[str, Part]):
    """name -> part. Entry points are listed at the first use and imported when their part is asked for.

    what: a part in a message. group: of the entry points. ours: win over everybody else's. checked: (name, object) ->
    the part that an entry point or `register` means; it raises ValueError or TypeError where there is none.
    """

    def __init__(self, what: str, group: str, ours: Mapping[str, Part], checked: Callable[[str, object], Part]) -> None:
        self.what, self.group, self.checked = what, group, checked
        self.ours = dict(ours)
        self.others: dict[str, Part] = {}  # registered or imported

    def __getitem__(self, name: str) -> Part:
        offered = self._offered
        if name in self.ours:
            return self.ours[name]
        if name not in self.others:
            self.others[name] = self._imported(name, offered[name])
        return self.others[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.ours, *self.others, *self._offered]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self.ours or name in self.others or name in self._offered

    def register(self, name: str, part: object) -> None:
        """Know a part in this process. Raises UsageError for a name that is ours, or no name, and for what is no part."""
        if name in self.ours:
            raise UsageError(f"{self.what} {name!r} is pgolf's own: give yours another name")
        if not NAME.fullmatch(name):
            raise UsageError(f"{self.what} {name!r}: a name is a letter, then letters, digits, - and _")
        try:
            self.others[name] = self.checked(name, part)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self.what} {name!r}: {error}") from None

    @cached_property
    def _offered(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            if point.name in self.ours:
                message = "%s offers a %s %r, which pgolf has: pgolf's own is used, theirs needs another name"
                logging.getLogger("pgolf").error(message, _package(point), self.what, point.name)
            elif point not in found.get(point.name, []):  # a folder may stand on sys.path twice
                found.setdefault(point.name, []).append(point)
        return found

    def _imported(self, name: str, points: list[EntryPoint]) -> Part:
        if len(points) > 1:
            packages = " and ".join(sorted(map(_package, points)))
            raise PluginError(f"{self.what} {name!r} is offered by {packages}: uninstall all but one")
        if not NAME.fullmatch(name):
            raise PluginError(f"{_package(points[0])}: {self.what} {name!r} is no name: letters, digits, - and _ are")
        try:
            return self.checked(name, points[0].load())
        except Exception as error:  # a stranger's module may raise anything while it is imported
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise PluginError(f"{_package(points[0])}: its {self.what} {name!r} cannot be loaded ({why})") from error


def _package(point: EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist else f"the entry point {point.value}"
