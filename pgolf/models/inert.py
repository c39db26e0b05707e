"""Stand-ins for what lies pickled beside weights (NumPy's numbers, settings, whole modules): they hold what was said and
run nothing."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

_CORES = ("numpy._core.multiarray", "numpy.core.multiarray")
_RANDOM = "numpy.random._pickle"
_TYPES = "Bool Int8 UInt8 Int16 UInt16 Int32 UInt32 Int64 UInt64 Float16 Float32 Float64 Complex64 Complex128 Str Bytes"
_STOOD_FOR = [
    *((core, name) for core in _CORES for name in ("scalar", "_reconstruct")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(("numpy.dtypes", f"{name}DType") for name in _TYPES.split()),
    *((_RANDOM, name) for name in ("__generator_ctor", "__bit_generator_ctor", "__randomstate_ctor")),
    *(("numpy.random.bit_generator", name) for name in ("__pyx_unpickle_SeedSequence", "SeedSequence")),
    *((f"numpy.random._{name.lower()}", name) for name in ("MT19937", "PCG64", "Philox", "SFC64")),
]
_DATA = frozenset(  # classes of the standard library that are not called like classes
    f"{module}.{name}"
    for module, names in {
        "builtins": "frozenset range slice bytearray Ellipsis NotImplemented object dict list int float str bool",
        "collections": "defaultdict deque",
        "datetime": "datetime date time timedelta timezone",
        "functools": "partial",
    }.items()
    for name in names.split()
)
_OF_TORCH = tuple(
    f"torch.{part}." for part in ("nn.modules", "nn.functional", "_C._nn", "nn.parallel", "nn.utils", "optim")
)
_LIBRARIES = ("torch.", "torchao.", "builtins.", "torch_xla.")  # of which only the above are data
_PARTS = ("_parameters", "_buffers", "_modules")  # of a module


class Inert:
    """Something of NumPy's: arguments as they were pickled, and the state that was set."""

    def __new__(cls, *arguments: Any) -> Inert:
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    arguments: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an array, () of anything else."""
        shape = self.state[1] if isinstance(self.state, tuple) and len(self.state) == 5 else ()
        return shape if isinstance(shape, tuple) and all(isinstance(n, int) for n in shape) else ()

    @property
    def dimensions(self) -> int:
        """Of an array, 0 of anything else."""
        return len(self.shape)


class Record(Inert):
    """An object of anybody's class, which is not imported."""

    shape = ()

    @property
    def members(self) -> dict[Any, Any]:
        """Its attributes by name, and what it was made of by number."""
        states = self.state if isinstance(self.state, tuple) else (self.state,)  # with slots: (attributes, slots)
        named = {key: value for part in states if isinstance(part, Mapping) for key, value in part.items()}
        return {**dict(enumerate(self.arguments)), **named}

    @property
    def is_module(self) -> bool:
        """Whether it is an nn.Module: it has parameters, buffers and modules."""
        return isinstance(self.state, Mapping) and all(isinstance(self.state.get(part), Mapping) for part in _PARTS)

    def state_dict(self, depth: int = 0) -> dict[str, Any]:
        """Of a module: what its own `state_dict` would give, as far as no hook of its class has a say. `depth` as it grows."""
        if not self.is_module or depth > DEEPEST:
            return {}
        parameters, buffers, modules = (self.state[part] for part in _PARTS)
        left_out = self.state.get("_non_persistent_buffers_set") or ()
        found = {str(name): value for name, value in parameters.items() if value is not None}
        found |= {str(n): value for n, value in buffers.items() if value is not None and n not in left_out}
        for name, inner in modules.items():
            if isinstance(inner, Record):
                found |= {f"{name}.{below}": value for below, value in inner.state_dict(depth + 1).items()}
        return found


DEEPEST = 40  # modules in one another


class Dict:
    """A dict of anybody's class: comes back as an OrderedDict, which torch's unpickler may fill."""

    def __new__(cls, *arguments: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]  # that is what it is for
        pairs = arguments[0] if arguments and isinstance(arguments[0], (Mapping, list, tuple)) else ()
        return OrderedDict(pairs)


class List:
    """A list of anybody's class, or a deque."""

    def __new__(cls, *arguments: Any) -> list[Any]:  # type: ignore[misc]  # that is what it is for
        return list(arguments[0]) if arguments and isinstance(arguments[0], (list, tuple)) else []


_FILLED = (  # what torch's unpickler says of a stand-in that turns out to be filled like a dict, or a list
    (Dict, re.compile(r"Can only SETITEMS? for dict.* but got <class '([^']+)'>")),
    (List, re.compile(r"Can only (?:append to|extend) lists, but got <class '([^']+)'>")),
)
_UNKNOWN = re.compile(r"Unsupported global: GLOBAL ([\w.<>]+) was not an allowed global")


def _stand_in(name: str, kind: type = Inert) -> type:
    module, _, short = name.rpartition(".")
    return type(short, (kind,), {"__module__": module, "__qualname__": short})


_STAND_INS = {f"{module}.{name}": _stand_in(f"{module}.{name}") for module, name in _STOOD_FOR}


def allowed(more: Iterable[type] = ()) -> AbstractContextManager[Any]:
    """While it holds, torch.load(weights_only=True) reads NumPy's pickles as `Inert`s instead of refusing them, and those
    of `more` as what they are."""
    return torch.serialization.safe_globals([*_STAND_INS.values(), *more])


def stands_for(name: str) -> bool:
    """Whether "module.name" is one of NumPy's."""
    return name in _STAND_INS


def learned(reason: str, known: dict[str, type]) -> bool:
    """Whether a refusal of torch's unpickler tells of a stand-in that would help: it is added to `known`, by its name."""
    for kind, filled in _FILLED:
        if (found := filled.search(reason)) and not issubclass(known.get(found[1], kind), kind):
            known[found[1]] = _stand_in(found[1], kind)
            return True
    found = _UNKNOWN.search(reason)
    name = "" if found is None else found[1] if "." in found[1] else f"builtins.{found[1]}"
    if not name or name in known or not _is_data(name):
        return False
    known[name] = _stand_in(name, Record)
    return True


def _is_data(name: str) -> bool:
    """Whether "module.name" is called like a class: a function has effects, or gives what only running it would tell."""
    if name in _DATA or name.startswith(_OF_TORCH):
        return True
    return name.rpartition(".")[2][:1].isupper() and not name.startswith(_LIBRARIES)
