"""Run an unknown causal model on its newest positions only, as with a KV cache, without knowing where its keys are.

What will surprise you:
* The model is always called with ids [N, T] of one fixed length, so its shapes, positions and masks are those of a full
  pass. What it computed for earlier positions still lies in the results of the pass before: an operation that treats
  every position alike (a product with a weight, a norm, an activation) writes the span of new positions into its old
  result and hands that out again; attention computes the queries of the span against all keys so far.
* Which dimension counts positions is seen by its size: T must be a number that no other dimension has (`odd_length`).
* Whether an operation treats every position alike is tried out in the first pass, which must be over real, varied ids.
  One that does not, or is not listed here, is computed whole: that costs time, never truth. What could cost truth (other
  calls than the first time, unknown changes in place) raises CannotIncrement. Compare with a whole pass before use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from pgolf.errors import CurvatureError
from pgolf.models.logits import Logits
from pgolf.quant.curvature.products import flattened, function_name

# fmt: off
POINTWISE = {
    "add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "addcmul", "lerp",
    "neg", "abs", "sign", "reciprocal", "pow", "square", "sqrt", "rsqrt", "exp", "log", "sin", "cos",
    "sigmoid", "tanh", "relu", "leaky_relu", "elu", "gelu", "silu", "mish", "softplus", "hardtanh", "hardswish",
    "minimum", "maximum", "clamp", "clamp_min", "clamp_max", "where", "masked_fill", "copy",
    "eq", "ne", "gt", "ge", "lt", "le",
    "__radd__", "__rsub__", "__rmul__", "__rdiv__", "__rtruediv__", "__pow__", "__rpow__",
}
ALIKE = POINTWISE | {  # what may treat every position alike; whether it does is tried
    "to", "float", "bfloat16", "half", "double", "type", "type_as", "contiguous", "clone", "dropout",
    "linear", "matmul", "mm", "bmm", "einsum", "embedding", "__getitem__", "index_select",
    "cat", "concat", "stack", "repeat_interleave", "reshape", "flatten", "glu",
    "rms_norm", "layer_norm", "normalize", "softmax", "log_softmax", "mean", "sum", "norm", "var", "amax",
}
# fmt: on
ATTENTION = "scaled_dot_product_attention"


class CannotIncrement(CurvatureError):
    """The model does something that spans of positions cannot be computed through: run it whole."""


def odd_length(least: int, taken: Iterable[int]) -> int:
    """The smallest odd number from `least` on that is none of the sizes `taken`: models' dimensions are even."""
    sizes = set(taken)
    n = max(least, 3) | 1
    while n in sizes:
        n += 2
    return n


class Incremental(TorchFunctionMode):
    """`run` (ids int64 [N, T] -> logits [N, T, V]), computing only a span of positions after a first whole pass."""

    def __init__(self, run: Logits, length: int) -> None:
        super().__init__()
        self._run = run
        self._length = length
        self._first = True
        self._span = slice(0, length)
        self._calls = 0
        self._kept: list[tuple[str, Tensor | None, int]] = []  # of every call: its result if it can be reused, its dim
        self._ours: set[int] = set()  # addresses of the results that are reused

    def logits(self, ids: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Logits [N, T, V], right at positions before `stop` if those before `start` are as in the last pass.

        The same memory every time. Raises CannotIncrement.
        """
        self._first = not self._kept
        self._span = slice(0, self._length) if self._first else slice(start, self._length if stop is None else stop)
        self._calls = 0
        with self:
            return self._run(ids)

    @property
    def num_bytes(self) -> int:
        """Memory of the results that are kept from pass to pass."""
        return sum(kept.nbytes for _, kept, _ in self._kept if kept is not None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if not any(self._dims(value) for value in flattened(*args, *kwargs.values())):
            return func(*args, **kwargs)
        if kwargs.get("inplace") or kwargs.get("out") is not None:  # F.normalize passes out=None on
            raise CannotIncrement(f"{name} in place")
        if name == "__setitem__" or name.startswith("__i") or (name.endswith("_") and not name.startswith("__")):
            return self._in_place(name, func, args, kwargs)
        if name == ATTENTION:
            return self._keep(name, partial(func, *args, **kwargs), partial(_attended, args, kwargs))
        if name in ALIKE:
            return self._keep(name, partial(func, *args, **kwargs), partial(self._narrowed, func, args, kwargs))
        return func(*args, **kwargs)

    def _keep(self, name: str, whole: Callable[[], Any], part: Callable[[slice], Any]) -> Any:
        """The call's result: computed whole, or renewed in the span where the first pass showed that this is the same."""
        number, self._calls = self._calls, self._calls + 1
        if self._first:
            result = whole()
            dim = self._alike(result, part)
            self._kept.append((name, None if dim is None else result, dim or 0))
            if dim is not None:
                self._ours.add(result.untyped_storage().data_ptr())
            return result
        if number >= len(self._kept) or self._kept[number][0] != name:
            raise CannotIncrement(f"another call of {name} than the first time")
        _, kept, dim = self._kept[number]
        if kept is None:
            return whole()
        target, fresh = _span(kept, dim, self._span), part(self._span)
        if fresh.shape != target.shape or fresh.dtype != target.dtype:
            raise CannotIncrement(f"another shape from {name} than the first time")
        target.copy_(fresh)
        return kept

    def _alike(self, result: Any, part: Callable[[slice], Any]) -> int | None:
        """The dimension of positions in a whole `result` of which `part` can compute a span by itself; None if not."""
        dims = self._dims(result)
        if len(dims) != 1:
            return None
        middle = slice(self._length // 3, max(self._length // 3 + 1, 2 * self._length // 3))
        try:
            fresh = part(middle)
        except (RuntimeError, TypeError, IndexError, ValueError):
            return None
        wanted = _span(result, dims[0], middle)
        if not isinstance(fresh, Tensor) or fresh.shape != wanted.shape or fresh.dtype != wanted.dtype:
            return None
        if fresh.untyped_storage().data_ptr() == wanted.untyped_storage().data_ptr():
            return None  # a view, which costs nothing
        scale = 1e-2 * float(wanted.detach().float().abs().mean())  # rounding differs with the number of rows
        return dims[0] if torch.allclose(fresh.float(), wanted.float(), rtol=1e-2, atol=scale) else None

    def _narrowed(self, func: Any, args: Any, kwargs: Any, span: slice) -> Any:
        """The call on a span of positions; ValueError if an operand has several dimensions of their number."""

        def cut(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)([cut(member) for member in value])
            dims = self._dims(value)
            if len(dims) > 1:
                raise ValueError("positions against positions")
            return _span(value, dims[0], span) if dims else value

        return func(*[cut(value) for value in args], **{key: cut(value) for key, value in kwargs.items()})

    def _in_place(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Only what is kept must not be changed twice: there, and where it is safe, the span alone is changed."""
        if not isinstance(args[0], Tensor) or args[0].untyped_storage().data_ptr() not in self._ours:
            return func(*args, **kwargs)
        if name.strip("_").removeprefix("i") not in POINTWISE and name.strip("_") not in POINTWISE:
            raise CannotIncrement(f"{name} in place")
        try:
            self._narrowed(func, args, kwargs, self._span)
        except ValueError as error:
            raise CannotIncrement(f"{name} in place") from error
        return args[0]

    def _dims(self, value: Any) -> list[int]:
        """The dimensions of a tensor that have one entry a position."""
        return [d for d, size in enumerate(value.shape) if size == self._length] if isinstance(value, Tensor) else []


def _span(value: Tensor, dim: int, span: slice) -> Tensor:
    return value.narrow(dim, span.start, span.stop - span.start)


def _attended(args: Any, kwargs: Any, span: slice) -> Tensor:
    """Causal attention of the span's queries to all keys up to its end: args are q, k, v [..., T, D], mask, p, causal."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, args, strict=False)) | kwargs
    q, k, v = (given.pop(name) for name in names[:3])
    mask, causal = given.pop("attn_mask", None), given.pop("is_causal", False)
    if mask is not None:
        mask = mask[..., span, : span.stop] if mask.shape[-2] > 1 else mask[..., : span.stop]
    elif causal and span.stop - span.start > 1:  # a single query sees all keys, and fast attention takes no mask
        seen = torch.arange(span.stop, device=q.device)
        mask = seen[None, :] <= seen[span, None]
    elif not causal:
        raise ValueError("attention that looks ahead")
    return scaled_dot_product_attention(q[..., span, :], k[..., : span.stop, :], v[..., : span.stop, :], mask, **given)
