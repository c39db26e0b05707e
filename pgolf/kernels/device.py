"""Where kernels can run: triton if there is one, and a clear word where there is none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import torch

from pgolf.errors import DeviceError

triton: Any = None
tl: Any = None
with suppress(ImportError):  # no wheel for this system, or left out: references only
    triton, tl = import_module("triton"), import_module("triton.language")


def jit(function: Callable[..., None]) -> Any:
    """`triton.jit`, or the function as it is where there is no triton to run it.

    This happens when a kernel's file is imported, so TRITON_INTERPRET=1 (Triton's interpreter, on the CPU) must be set before.
    """
    return function if triton is None else triton.jit(function)


def jit_for_any(*names: str) -> Callable[[Callable[..., None]], Any]:
    """`jit` of a kernel that is not compiled anew where these integers are 1 or divisible by 16: one for all shapes."""

    def made(function: Callable[..., None]) -> Any:
        return function if triton is None else triton.jit(function, do_not_specialize=list(names))

    return made


def need(device: torch.device | str | None, *, kernels: bool = True) -> torch.device:
    """`device`, if tensors can be there, and kernels too unless none is wanted. Raises DeviceError that says what is missing.

    None: CUDA where there is such a device, else the CPU.
    """
    try:
        wanted = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise DeviceError(f"{device!r} is not a device: write cpu, cuda or cuda:0") from None
    if wanted.type == "cuda":
        _need_cuda(wanted, kernels)
    elif wanted.type != "cpu":
        raise DeviceError(f"pgolf runs on cpu and cuda, not on {wanted}")
    return wanted


def _need_cuda(wanted: torch.device, kernels: bool) -> None:
    if not torch.cuda.is_available():
        why = "has no CUDA in it" if torch.version.cuda is None else "finds no GPU or driver"
        raise DeviceError(
            f"{wanted} was asked for, but torch {torch.__version__} {why}: use --device cpu or another torch"
        )
    if kernels and triton is None:
        raise DeviceError(f"{wanted} was asked for, but triton is not installed: pip install 'pgolf[gpu]'")
    if (wanted.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"{wanted} was asked for, but there are {torch.cuda.device_count()} CUDA devices")
