"""CUDA graphs of what is launched again and again, and counters that kernels leave at zero for the next launch."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 3  # before a capture: compile, and fill the caches of whatever is called
LEAST = 1024  # counters of a stream or a graph

_of_streams: dict[tuple[torch.device, int], Tensor] = {}
_of_graph: ContextVar[Tensor | None] = ContextVar("counters of the graph that is captured", default=None)


@dataclass(frozen=True)
class Captured:
    """Work as one graph: `replay` launches it, `result` is what it returned, overwritten by each replay; counters: its own."""

    graph: Any
    result: Any
    counters: Tensor

    def replay(self) -> None:
        """Do it again; replays of one graph must follow one another."""
        self.graph.replay()


def captured(work: Callable[[], Any], place: torch.device) -> Captured:
    """`work` on a CUDA device, done WARM_UPS times and then captured, without gradients.

    It must neither wait for the device nor look at values, and what it reads must stay where it is.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(place), torch.no_grad():
        own = torch.zeros(LEAST, dtype=torch.int32, device=place)
        aside: Any = torch.cuda.Stream(place)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(place))
        token = _of_graph.set(own)
        try:
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    work()
            torch.cuda.current_stream(place).wait_stream(aside)
            with torch.cuda.graph(graph):
                result = work()
        finally:
            _of_graph.reset(token)
    return Captured(graph, result, own)


class Graphed:
    """function(*inputs) -> tensor as one launch, for inputs of these shapes, dtypes and devices; see `captured`."""

    def __init__(self, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        self._inputs = [x.clone() for x in inputs]
        self._captured = captured(lambda: function(*self._inputs), inputs[0].device)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The result for these inputs: a tensor that the next call overwrites. ValueError for inputs of another kind."""
        for mine, given in zip(self._inputs, inputs, strict=True):
            if (given.shape, given.dtype, given.device) != (mine.shape, mine.dtype, mine.device):
                raise ValueError(f"a graph captured for {_kind(mine)} was given {_kind(given)}: capture another")
            mine.copy_(given)
        self._captured.replay()
        result: Tensor = self._captured.result
        return result


def _kind(x: Tensor) -> str:
    return f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}"


def counters(count: int, device: torch.device) -> Tensor:
    """int32 [count or more], zeros, for a kernel on the current stream that leaves them so.

    Launches of one stream follow one another and share them, as do those of one `captured` graph. In a capture of
    somebody else's they are made anew and zeroed by the graph: two of his may be replayed side by side.
    """
    given = _of_graph.get()
    if given is not None and given.device == device and len(given) >= count:
        return given
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = device, torch.cuda.current_stream(device).cuda_stream
    if key not in _of_streams or len(_of_streams[key]) < count:
        _of_streams[key] = torch.zeros(max(count, LEAST), dtype=torch.int32, device=device)
    return _of_streams[key]
