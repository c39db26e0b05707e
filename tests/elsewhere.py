"""A GPU that is not there: tensors that say cuda:0, compute on the CPU, and refuse what a real one refuses.

    with gpu() as there:
        model.to("cuda"); model(ids.to("cuda"))
    there.waits                      what made the host wait: "aten._to_copy" to the CPU, ".item()", nonzero ...

Operands on two devices are an error (but for numbers, tensors of no dimensions, on the CPU), as is numpy of a tensor there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from pgolf.common import factoring

PLACE = torch.device("cuda", 0)
WAITS = {"_local_scalar_dense", "equal", "nonzero", "is_nonzero", "unique_consecutive", "_unique2", "masked_select"}
KEPT_IN = [
    f"kernels.{name}"
    for name in ("dequant", "packed", "quant_linear", "rans_decode", "round_block", "softcap_nll", "strips")
]
current: list[Gpu] = []


class There(Tensor):
    """A tensor on the GPU that is not there; `held` holds its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> There:
        like = {"strides": real.stride(), "storage_offset": real.storage_offset(), "dtype": real.dtype}
        self = Tensor._make_wrapper_subclass(cls, real.shape, **like, device=real.device)
        self.held = real.detach()
        return self

    device = property(lambda self: PLACE)  # for Python; torch's own C++ takes it for a tensor of the CPU
    is_cuda = property(lambda self: True)
    data = property(lambda self: self.detach(), lambda self, new: setattr(self, "held", new.held))
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def cpu(self) -> Tensor:
        waited("cpu")
        return Back.apply(self)

    def to(self, *args: object, **kwargs: object) -> Tensor:
        if is_cpu([*args, *kwargs.values()]):
            dtype = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)), self.dtype)
            return Back.apply(self) if kwargs.get("non_blocking") else self.cpu().to(dtype)
        kept = {key: value for key, value in kwargs.items() if not is_cuda(value)}
        rest = [a for a in args if not is_cuda(a) and a is not None and a is not False]
        return super().to(*rest, **kept) if rest or kept else self

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def tolist(self) -> object:
        waited("tolist")
        return self.held.tolist()

    def __repr__(self) -> str:
        return f"There({self.held!r})"

    def numpy(self, *_: object, **__: object) -> None:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatched(func, args, dict(kwargs or {}))


def dispatched(func, args, kwargs):
    name = func.overloadpacket.__name__
    operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [t for t in operands if not isinstance(t, There) and t.dim() and t.device.type == "cpu"]
    if here and name not in {"copy_", "_to_copy"}:
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {func} got cuda:0 and cpu {list(here[0].shape)}"
        )
    if name in WAITS or (name == "copy_" and not isinstance(args[0], There)):
        waited(name)
    result = func(*tree_map(bare, args), **tree_map(bare, kwargs))
    if not func._schema.returns:
        return None
    if func._schema.is_mutable and name.endswith("_"):
        return args[0]
    return tree_map(lambda value: There(value) if isinstance(value, Tensor) else value, result)


def waited(what: str) -> None:
    """The host waits for the device."""
    for one in current:
        one.waits[what] += 1


def bare(value):
    return value.held if isinstance(value, There) else value


def is_cuda(value: object) -> bool:
    return (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value[:4] == "cuda"
    )


class Gpu(TorchFunctionMode):
    """Sees what names the device before torch does, which has none."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        named = any(map(is_cuda, args)) or is_cuda(kwargs.get("device"))
        if not named or isinstance(func, type) or name == "_parse_to":
            return func(*args, **kwargs)
        if name == "to":
            dtype = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)), args[0].dtype)
            there = moved(args[0])
            return there if there.dtype == dtype else there.to(dtype)
        cpu = [torch.device("cpu") if is_cuda(a) else a for a in args]
        kwargs = {key: torch.device("cpu") if is_cuda(value) else value for key, value in kwargs.items()}
        learns = kwargs.pop("requires_grad", False)
        result = func(*tree_map(bare, cpu), **tree_map(bare, kwargs))
        return moved(result).requires_grad_(learns) if isinstance(result, Tensor) else result


def is_cpu(values: list[object]) -> bool:
    return any(value == "cpu" or (isinstance(value, torch.device) and value.type == "cpu") for value in values)


class Back(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.held.clone()

    @staticmethod
    def backward(ctx, grad):
        return There(grad)


class Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return There(x.detach().clone())

    @staticmethod
    def backward(ctx, grad):
        return bare(grad)


def moved(x: Tensor) -> Tensor:
    return Moved.apply(x) if x.requires_grad and torch.is_grad_enabled() else There(x.detach().clone())


class Generator(torch.Generator):
    """A generator for any device: its numbers are drawn on the CPU."""

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        return super().__new__(cls, "cpu")


def launched(kernel, grid, *arguments, **options):
    """As `kernels.launch.launch`, in Triton's interpreter: everything must be there."""
    assert all(isinstance(a, There) for a in arguments if isinstance(a, Tensor)), "an operand lies on the CPU"
    kernel[tuple(grid)](*map(bare, arguments), **options)


def made_there(factory):
    """A factory of tensors that knows the device in a backward pass as well, where modes are off."""

    def make(*args, **kwargs):
        if is_cuda(kwargs.get("device")):
            learns = kwargs.pop("requires_grad", False)
            return There(factory(*args, **{**kwargs, "device": "cpu"})).requires_grad_(learns)
        return factory(*args, **{key: value for key, value in kwargs.items() if key != "pin_memory"})

    return make


def to_anywhere(original):
    """Tensor.to that knows the device in other threads, where modes are off."""

    def to(self, *args, **kwargs):
        if isinstance(self, There) or not any(map(is_cuda, (*args, *kwargs.values()))):
            return original(self, *args, **kwargs)
        dtype = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)), self.dtype)
        return moved(original(self, dtype))

    return to


def factored(function):
    """A factorisation that ends as torch's does where two threads come to it at once: nobody may come without the lock."""

    def make(*args, **kwargs):
        if any(isinstance(a, There) for a in args) and not factoring.LOCK.locked():
            raise RuntimeError("lazy wrapper should be called at most once")
        return function(*args, **kwargs)

    return make


class Event:
    """What the host waits for without stopping the device."""

    def record(self) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded


class Properties:
    multi_processor_count = 1
    cuda_stream = 0


@contextmanager
def gpu() -> Iterator[Gpu]:
    """There is a GPU inside."""
    there = Gpu()
    patches = [patch(f"pgolf.{name}.launch", launched) for name in KEPT_IN]
    patches += [
        patch("torch.Generator", Generator),
        patch("pgolf.kernels.device._need_cuda", lambda *_: None),
        patch("torch.cuda.synchronize", lambda *_: None),
        patch("torch.cuda.Event", Event),
        patch("torch.cuda.device", lambda *_: nullcontext()),
        patch("torch.cuda.mem_get_info", lambda *_: (1 << 30, 1 << 30)),
        patch("torch.cuda.Stream", lambda *_: None),
        patch("torch.cuda.stream", lambda *_: nullcontext()),
        patch("torch.cuda.current_stream", lambda *_: Properties),
        patch("torch.cuda.is_current_stream_capturing", lambda: False),
        patch("torch.cuda.get_device_properties", lambda *_: Properties),
        patch("torch.Tensor.pin_memory", lambda self, *_: self),
    ]
    patches += [
        patch(f"torch.linalg.{n}", factored(getattr(torch.linalg, n))) for n in ("cholesky_ex", "solve_triangular")
    ]
    patches += [patch("torch.Tensor.to", to_anywhere(Tensor.to))]
    patches += [patch(f"torch.{name}", made_there(getattr(torch, name))) for name in ("zeros", "ones", "eye", "empty")]
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `param.data = ` would lose what a tensor holds
    current.append(there)
    try:
        for one in patches:
            one.start()
        with there:
            yield there
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
        current.remove(there)
        for one in patches:
            one.stop()
