"""Batches to the device and losses back, so that the device works on the next batch while the host reads this one's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.scoring.windows import Window

T = TypeVar("T")


def ids_of(tokens: NDArray[np.integer], windows: Iterable[Window], device: torch.device) -> Tensor:
    """int64 [B, T + 1] on the device: the tokens of windows of one shape. The host does not wait for the copy."""
    rows = np.stack([tokens[window.start : window.stop + 1] for window in windows]).astype(np.int64)
    ids = torch.from_numpy(rows)
    return ids.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else ids.to(device)


def fetched(values: Tensor) -> Callable[[], NDArray[Any]]:
    """Begin to copy `values` to the host; what is returned waits for them, and for nothing that was launched later."""
    if values.device.type != "cuda":
        return values.detach().cpu().numpy
    copy = values.detach().to("cpu", non_blocking=True)
    with torch.cuda.device(values.device):
        done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()

    def read() -> NDArray[Any]:
        done.synchronize()
        found: NDArray[Any] = copy.numpy()
        return found

    return read


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """Each item once the one after it has been made."""
    before: list[T] = []
    for item in items:
        yield from before
        before = [item]
    yield from before
