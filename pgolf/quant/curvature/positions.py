"""Calls of a model on ids [N, T], told apart by what they have to do with positions, and computed at one of them.

Which dimension counts positions is seen by its size: T must be a number that no other dimension has (`odd_length`). One of
N·T counts the positions of all rows together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from pgolf.errors import CurvatureError
from pgolf.quant.curvature import attention
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
SIZED = {"reshape", "view", "expand", "unflatten"}  # name the number of positions among their arguments
ALIKE = POINTWISE | SIZED | {  # what may treat every position alike; whether it does is tried
    "to", "float", "bfloat16", "half", "double", "type", "type_as", "contiguous", "clone", "dropout",
    "linear", "matmul", "mm", "bmm", "baddbmm", "addmm", "einsum", "embedding", "__getitem__", "index_select",
    "cat", "concat", "stack", "repeat_interleave", "flatten", "glu",
    "rms_norm", "layer_norm", "normalize", "softmax", "log_softmax", "mean", "sum", "norm", "var", "amax",
}
# fmt: on
ATTENTION = "scaled_dot_product_attention"


class CannotIncrement(CurvatureError):
    """The model does something that single positions cannot be computed through: run it whole."""


def odd_length(least: int, taken: Iterable[int]) -> int:
    """The smallest odd number from `least` on that is none of the sizes `taken`: models' dimensions are even."""
    sizes = set(taken)
    n = max(least, 3) | 1
    while n in sizes:
        n += 2
    return n


Choice = Callable[[Sequence[int], int, bool], int | None]
"""(dims of positions of an operand, how many dims it has, whether it is the first such) -> where to cut it, or not."""


def at_each(dims: Sequence[int], rank: int, first: bool) -> int | None:
    """Every operand at its positions."""
    if len(dims) > 1:
        raise ValueError("positions against positions")
    return dims[0] if dims else None


def at_rows(dims: Sequence[int], rank: int, first: bool) -> int | None:
    """Scores of positions [..., T, T], and what is done to them, at the rows."""
    return rank - 2 if rank - 2 in dims else None


def at_queries(dims: Sequence[int], rank: int, first: bool) -> int | None:
    """Products of positions with positions: the first operand alone, at its rows."""
    if not first or not dims:
        return None
    return dims[0] if len(dims) == 1 else rank - 2


CHOICES: tuple[Choice, ...] = (at_each, at_rows, at_queries)


class Positions(TorchFunctionMode):
    """Tells calls that have to do with positions apart; ids are [rows, length]."""

    def __init__(self, rows: int, length: int) -> None:
        super().__init__()
        self.rows, self.length = rows, length

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if name == attention.NAME:
            with self:
                written = attention.written_out(args, kwargs)
            if written is not None:
                return written
        if not any(self.dims(value) for value in flattened(*args, *kwargs.values())):
            return func(*args, **kwargs)
        if kwargs.get("inplace") or kwargs.get("out") is not None:  # F.normalize passes out=None on
            raise CannotIncrement(f"{name} in place")
        if name == "__setitem__" or name.startswith("__i") or (name.endswith("_") and not name.startswith("__")):
            return self.in_place(name, func, args, kwargs)
        if name == ATTENTION or name in ALIKE:
            return self.alike(name, func, args, kwargs)
        return self.other(name, func, args, kwargs)

    def alike(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """A call that may treat every position alike."""
        raise NotImplementedError

    def in_place(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """A call that changes its first operand."""
        raise NotImplementedError

    def other(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Any other call."""
        raise NotImplementedError

    def dims(self, value: Any) -> list[int]:
        """The dimensions of a tensor that have one entry a position."""
        sizes = (self.length, self.rows * self.length)
        return [d for d, size in enumerate(value.shape) if size in sizes] if isinstance(value, Tensor) else []

    def at(self, value: Tensor, dim: int, position: int) -> Tensor:
        """The view of one position, of every row where `dim` counts those of all rows."""
        if value.shape[dim] == self.length:
            return value.select(dim, position).unsqueeze(dim)  # narrow leaves a stride of zero, slow in products
        return value[(slice(None),) * dim + (slice(position, None, self.length),)]

    def cut(
        self, name: str, args: Any, kwargs: Any, choice: Choice, position: int
    ) -> tuple[Any, Any, list[tuple[Tensor, int | None]]]:
        """The arguments at one position, and each operand that has positions with the dim at which it was cut, if any.

        ValueError if an operand cannot be cut so.
        """
        met: list[tuple[Tensor, int | None]] = []

        def one(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return tuple(one(member) for member in value)
            if type(value) is int and name in SIZED:
                return {self.length: 1, self.rows * self.length: self.rows}.get(value, value)
            if not (dims := self.dims(value)):
                return value
            dim = choice(dims, value.dim(), not met)
            met.append((value, dim))
            return value if dim is None else self.at(value, dim, position)

        args = [one(value) if not isinstance(value, torch.Size) else one(tuple(value)) for value in args]
        kwargs = {key: one(value) for key, value in kwargs.items()}
        if all(dim is None for _, dim in met):
            raise ValueError("nothing to cut")
        return args, kwargs, met

    def computed(
        self, name: str, func: Any, args: Any, kwargs: Any, choice: Choice, position: int
    ) -> tuple[Any, list[tuple[Tensor, int | None]]]:
        """The call at one position, and its operands as in `cut`."""
        if name == ATTENTION:
            return _attended(args, kwargs, position)
        args, kwargs, met = self.cut(name, args, kwargs, choice, position)
        if name == "linear":
            args = [args[0].contiguous(), *args[1:]]  # else it is computed row by row
        return func(*args, **kwargs), met


def _attended(args: Any, kwargs: Any, position: int) -> tuple[Tensor, list[tuple[Tensor, int | None]]]:
    """Causal attention of one query to all keys up to it: args are q, k, v [..., T, D], mask, p, causal."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, args, strict=False)) | kwargs
    q, k, v = (given.pop(name) for name in names[:3])
    mask, causal = given.pop("attn_mask", None), given.pop("is_causal", False)
    if mask is None and not causal:
        raise ValueError("attention that looks ahead")
    met = [(q, q.dim() - 2), (k, None), (v, None), *([] if mask is None else [(mask, None)])]
    row = slice(position, position + 1) if mask is not None and mask.shape[-2] > 1 else slice(None)
    if mask is not None:
        mask = mask[..., row, : position + 1]
    q, k, v = q[..., position : position + 1, :], k[..., : position + 1, :], v[..., : position + 1, :]
    return scaled_dot_product_attention(q, k, v, mask, **given), met
