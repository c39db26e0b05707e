"""Float32 products by oneDNN where a processor computes them in full.

PyTorch gives float32 products to MKL, which on processors of another maker runs at less than half of their speed; oneDNN takes
them only where it may round operands to bfloat16. Most processors have no instructions to gain by that, and it multiplies in
float32 there. Whether it does is seen from a product, not from a list of processors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

FREE = "medium"  # operands may be rounded
SIDE, EXACT = 256, 1e-5  # of the product that is looked at; its largest relative error, 7e-4 with bfloat16


@contextmanager
def by_onednn(device: torch.device) -> Iterator[None]:
    """Inside, float32 products on a CPU run as fast as oneDNN can, if in full. Nothing is changed for other devices, nor where
    a precision was chosen by PyTorch's newer switches, which this one must not be mixed with."""
    if device.type == "cpu" and _in_full():
        with _free():
            yield
    else:
        yield


@contextmanager
def _free() -> Iterator[None]:
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer switches were used
        yield
        return
    torch.set_float32_matmul_precision(FREE)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def _in_full() -> bool:
    a = torch.rand((SIDE, SIDE), generator=torch.Generator().manual_seed(0)) + 0.5
    with _free():
        found = a @ a
    true = a.double() @ a.double()
    return bool(((found - true).abs() / true).max() < EXACT)
