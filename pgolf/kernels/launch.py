"""The door of every kernel: operands are checked, and the launch happens on the device that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from threading import Lock
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # what kernels read and write as numbers
_LOCK = Lock()
INTEGERS = (torch.int8, torch.int16, torch.int32)  # what codes are


def launch(kernel: Any, grid: Sequence[int], *arguments: Any, **options: Any) -> None:
    """`kernel[grid](*arguments, **options)` with the first tensor's device as the current one.

    Triton launches on the current device, whatever its pointers belong to: with tensors on cuda:1 and cuda:0 current, it
    would read another card's memory. One thread launches at a time: the first launch compiles, and Triton promises nothing
    of two. Raises ValueError where the tensors lie on several devices.
    """
    places = {argument.device for argument in arguments if isinstance(argument, Tensor)}
    if len(places) != 1:
        raise ValueError(f"the operands of a kernel lie on {', '.join(sorted(map(str, places)))}: move them together")
    (place,) = places
    with _LOCK, torch.cuda.device(place) if place.type == "cuda" else nullcontext():
        kernel[tuple(grid)](*arguments, **options)


def require(
    name: str,
    tensor: Tensor,
    shape: tuple[int | None, ...],
    dtypes: Sequence[torch.dtype],
    like: Tensor,
    *,
    contiguous: bool = True,
) -> None:
    """ValueError naming the operand, unless it has this shape (None: any length), one of the dtypes, like's device, no gaps."""
    fits = tensor.dim() == len(shape) and all(n in (None, m) for n, m in zip(shape, tensor.shape, strict=False))
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} has shape {list(tensor.shape)}, not [{wanted}]")
    if tensor.dtype not in dtypes:
        known = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, not {known}")
    if tensor.device != like.device:
        raise ValueError(f"{name} lies on {tensor.device}, the rest on {like.device}: move them together")
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}: make it contiguous")
