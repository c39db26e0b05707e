"""Graphs of kernels, on a GPU that is not there: its graph notes launches and copies, and repeats them on the same memory."""

from contextlib import contextmanager, nullcontext
from itertools import count

import pytest
import torch

from pgolf.kernels import graphs, packed, quant_linear
from tests.elsewhere import gpu, launched
from tests.helpers import generator
from tests.kernels.places import HAS_GPU, needs_triton, on_gpu

PLACE = torch.device("cuda", 0)
elsewhere = [pytest.mark.skipif(HAS_GPU, reason="a GPU is there: it shows the same by itself"), needs_triton]


NUMBERS = count(1)


class Stream:
    def __init__(self, *_):
        self.cuda_stream = next(NUMBERS)

    def wait_stream(self, other):
        assert other is not self


class Graph:
    """What was launched while it was captured, in order."""

    def __init__(self):
        self.launches = []

    def replay(self):
        for launch, arguments, options in self.launches:
            launch(*arguments, **options)


class Machine:
    """The GPU's streams, and the graph that is being captured."""

    def __init__(self):
        self.capturing = None
        self.main = Stream()
        self.stream = self.main

    def launch(self, *arguments, **options):
        if self.capturing is not None:
            self.capturing.launches.append((launched, arguments, options))
            return
        launched(*arguments, **options)

    @contextmanager
    def capture(self, graph):
        self.capturing = graph
        yield
        self.capturing = None

    @contextmanager
    def on(self, stream):
        before, self.stream = self.stream, stream
        yield
        self.stream = before


@pytest.fixture
def machine():
    made = Machine()
    with gpu() as there, pytest.MonkeyPatch.context() as monkeypatch:
        made.waits = there.waits
        for name, value in {
            "CUDAGraph": Graph,
            "Stream": Stream,
            "graph": made.capture,
            "stream": made.on,
            "device": lambda _: nullcontext(),
            "current_stream": lambda *_: made.stream,
            "is_current_stream_capturing": lambda: made.capturing is not None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(quant_linear, "launch", made.launch)
        monkeypatch.setattr(quant_linear, "_processors", lambda _: 3)
        monkeypatch.setattr(graphs, "_of_streams", {})
        yield made


def matrix():
    codes = torch.randint(-8, 8, (20, 500), generator=generator(0))
    parts = codes, torch.rand(20, generator=generator(1)), torch.rand(500, generator=generator(2))
    weight = packed.pack(*parts)
    return packed.dense_reference(weight, torch.float32), packed.pack(*(part.to(PLACE) for part in parts))


class TestElsewhere:
    pytestmark = elsewhere

    def test_a_graph_does_the_same_to_other_values(self, machine):
        dense, weight = matrix()
        x = torch.randn(3, 500, generator=generator(3))
        machine.waits.clear()
        made = graphs.Graphed(lambda x: quant_linear.launch_quant_linear(x, weight), x.to(PLACE))
        assert not machine.waits, "the host waited in a capture"
        for seed in (4, 5):
            x = torch.randn(3, 500, generator=generator(seed))
            torch.testing.assert_close(made(x.to(PLACE)).held, x @ dense.T, rtol=1e-5, atol=1e-4)
        assert len(made._captured.graph.launches) == 1
        assert not made._captured.counters.held.any()
        assert not graphs._of_streams, "a graph has counters of its own"

    def test_inputs_of_another_kind_are_named(self, machine):
        made = graphs.Graphed(lambda x: x + 1, torch.zeros(2, 3).to(PLACE))
        with pytest.raises(ValueError, match=r"captured for \[2, 3\] float32 on cuda:0 was given \[3\] float32 on cpu"):
            made(torch.zeros(3))

    def test_launches_of_a_stream_share_counters_and_no_others_do(self, machine):
        first = graphs.counters(5, PLACE)
        assert graphs.counters(graphs.LEAST, PLACE) is first
        assert len(graphs.counters(graphs.LEAST + 1, PLACE)) > graphs.LEAST
        with machine.on(Stream()):
            assert graphs.counters(5, PLACE) is not graphs.counters(graphs.LEAST + 1, PLACE)
            other = graphs.counters(5, PLACE)
        assert graphs.counters(5, PLACE) is not other
        with machine.capture(Graph()):  # somebody else's
            assert graphs.counters(5, PLACE) is not graphs.counters(5, PLACE)


class TestOnTheGpu:
    pytestmark = on_gpu

    @pytest.mark.parametrize("inputs", [1, 16, 64])
    @pytest.mark.parametrize(("rows", "cols"), [(512, 512), (512, 2048), (8192, 8192)])
    def test_a_graph_of_a_product(self, rows, cols, inputs):
        weight = packed.pack(torch.randint(-8, 8, (rows, cols), device="cuda"), None, None, bits=4)
        x = torch.randn(inputs, cols, device="cuda", dtype=torch.bfloat16)
        made = graphs.Graphed(lambda x: quant_linear.quant_linear(x, weight), torch.zeros_like(x))
        eager = quant_linear.quant_linear(x, weight)
        for _ in range(3):
            assert torch.equal(made(x), eager)
