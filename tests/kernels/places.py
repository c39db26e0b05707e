"""Where kernel tests run: in Triton's interpreter on a machine without a GPU (see conftest.py), compiled on one with."""

import importlib.util

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
HAS_TRITON = importlib.util.find_spec("triton") is not None

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no CUDA device"), needs_triton]
interpreted = [pytest.mark.skipif(HAS_GPU, reason="this process compiles kernels for its GPU"), needs_triton]
everywhere = pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=interpreted, id="interpreter"), pytest.param("cuda", marks=on_gpu)]
)


def poison(device: str) -> None:
    """Leave NaN in the memory that the next tensors on a GPU get: what a kernel does not write shows."""
    if device == "cuda":
        for size in (1 << 10, 1 << 16, 1 << 22):
            torch.full((size,), float("nan"), device=device)
