"""Stand-ins for what NumPy pickles beside weights (losses, random states): they hold what was said and run nothing."""

from __future__ import annotations

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


def _stand_in(module: str, name: str) -> type[Inert]:
    return type(name, (Inert,), {"__module__": module, "__qualname__": name})


_STAND_INS = [_stand_in(module, name) for module, name in _STOOD_FOR]


def allowed() -> AbstractContextManager[Any]:
    """While it holds, torch.load(weights_only=True) reads NumPy's pickles as `Inert`s instead of refusing them."""
    return torch.serialization.safe_globals([*_STAND_INS])


def stands_for(name: str) -> bool:
    """Whether "module.name" is one of those."""
    return any(name == f"{module}.{inner}" for module, inner in _STOOD_FOR)
