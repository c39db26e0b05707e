"""Do something once another package is imported, if it ever is: nobody pays for a package that is not used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def when_imported(name: str, do: Callable[[], None]) -> None:
    """Call `do` at once where the module `name` is imported already, else right after it will have been."""
    if name in sys.modules:
        do()
    else:
        sys.meta_path.insert(0, _Finder(name, do))


class _Finder:
    """Finds one module as everybody else would, and lets its loader say when it is done."""

    def __init__(self, name: str, do: Callable[[], None]) -> None:
        self._name, self._do = name, do

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self._name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        found = find_spec(name)
        if found is not None and found.loader is not None:
            found.loader = _Told(found.loader, self._do)
        return found


class _Told(Loader):
    """A loader that tells when its module has run."""

    def __init__(self, loader: Any, do: Callable[[], None]) -> None:
        self._loader, self._do = loader, do

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._do()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
