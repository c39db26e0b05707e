"""The ways in which PyTorch code writes a product with a weight, brought to one form: y = x Wᵀ, for one or n matrices.

Nothing is computed. A handler reads a finished call and says how x, the result and the weight's layout are to be viewed;
it returns None for what it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from string import ascii_letters, ascii_uppercase
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_GROUPS = 64  # of a convolution: each is a product by itself; more are left to their gradients


class Call(NamedTuple):
    """One call of a torch function and its result."""

    name: str
    func: Any
    args: Any
    kwargs: Any
    result: Any


def function_name(func: Any) -> str:
    """The function's name; of a property, the property's."""
    name: str = getattr(func, "__name__", type(func).__name__)
    return func.__self__.__name__ if name == "__get__" else name


def flattened(*values: Any) -> Iterator[Any]:
    """The values, and the members of those that are sequences."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


class Product(NamedTuple):
    """y = x Wᵀ for n matrices: x [n, N, I]; flat(y) [n, N, O]; matrix(weight's layout) [n, O, I]."""

    x: Tensor
    flat: Callable[[Tensor], Tensor]
    matrix: Callable[[Tensor], Tensor]


Known = Callable[[Any], bool]  # whether a value is a followed weight


def _linear(call: Call, known: Known) -> Product | None:
    x, w = (*call.args, *(call.kwargs[k] for k in ("input", "weight") if k in call.kwargs))[:2]
    if not known(w) or w.dim() != 2:
        return None
    return Product(x.reshape(1, -1, w.shape[1]), lambda g: g.reshape(1, -1, w.shape[0]), lambda layout: layout[None])


def _addmm(call: Call, known: Known) -> Product | None:
    if len(call.args) != 3 or call.kwargs.get("alpha", 1) != 1 or known(call.args[0]):
        return None
    return _matmul(call._replace(args=call.args[1:], kwargs={}), known)


def _addbmm(call: Call, known: Known) -> Product | None:
    """Σ_n x_n @ w_n: the gradient at the sum is that of each."""
    if len(call.args) != 3 or call.kwargs.get("alpha", 1) != 1 or known(call.args[0]):
        return None
    n, shape = call.args[1].shape[0], call.result.shape
    each = call._replace(args=call.args[1:], kwargs={}, result=call.result.detach().expand(n, *shape))
    product = _matmul(each, known)
    if product is None:
        return None
    flat = product.flat
    return product._replace(flat=lambda g: flat(g.expand(n, *shape)))


def _inner(call: Call, known: Known) -> Product | None:
    """x · w over the last dimension of both."""
    if len(call.args) != 2 or not known(call.args[1]) or call.args[1].dim() != 2:
        return None
    return _linear(call._replace(kwargs={}), known)


def _matmul(call: Call, known: Known) -> Product | None:
    """x @ w, or w @ x, which is (xᵀ @ wᵀ)ᵀ; w [I, O] or [n, I, O]."""
    if len(call.args) != 2:
        return None
    left, right = call.args
    dims = call.result.dim()
    if known(right):
        return _times(left, right, dims)
    upright = right.dim() == 1
    product = _times(right if upright else right.mT, left.mT, dims) if left.dim() > 1 else None
    if product is None:
        return None
    flat, matrix = product.flat, product.matrix
    return product._replace(flat=lambda g: flat(g if upright else g.mT), matrix=lambda layout: matrix(layout.mT))


def _times(x: Tensor, w: Tensor, dims: int) -> Product | None:
    """x @ w with the followed w on the right; y has `dims` dimensions."""
    if w.dim() == 2 or (w.dim() == 3 and w.shape[0] == 1):
        inputs, outputs = w.shape[-2:]
        return Product(
            x.reshape(1, -1, inputs),
            lambda g: g.reshape(1, -1, outputs),
            lambda layout: layout.mT if layout.dim() == 3 else layout.mT[None],
        )
    if w.dim() != 3 or x.dim() < 2 or dims < 3:
        return None
    n, inputs, outputs = w.shape

    def spread(t: Tensor, last: int) -> Tensor:
        """The batch dimension that counts w's matrices first."""
        t = t.expand(*t.shape[: max(t.dim() - 3, 0)], n, *t.shape[-2:])
        return t.movedim(-3, 0).reshape(n, -1, last)

    return Product(spread(x, inputs), lambda g: spread(g, outputs), lambda layout: layout.mT)


def _einsum(call: Call, known: Known) -> Product | None:
    """Every letter of the weight is contracted, free, or (at most one) counts matrices; the others are multiplied first."""
    operands = list(flattened(*call.args[1:]))
    letters = _letters(call.args[0], operands)
    if letters is None or len(operands) < 2:
        return None
    place = next(i for i, operand in enumerate(operands) if known(operand))
    *terms, of_y = letters
    w, of_w = operands.pop(place), terms.pop(place)
    if len(set(of_w)) != len(of_w):
        return None
    x, of_x = operands[0], terms[0]
    if len(operands) > 1:
        of_x = "".join(dict.fromkeys(c for c in "".join(terms) if c in of_w or c in of_y))
        with torch.no_grad():
            x = torch.einsum(f"{','.join(terms)}->{of_x}", [operand.detach() for operand in operands])
    return None if len(set(of_x)) != len(of_x) else _contracted(x, w, of_x, of_w, of_y)


def _tensordot(call: Call, known: Known) -> Product | None:
    """By letters, as an einsum."""
    a, b, dims = (*call.args, *(call.kwargs[k] for k in ("a", "b", "dims") if k in call.kwargs), 2)[:3]
    if isinstance(dims, Tensor):
        dims = dims.tolist()
    pairs = [list(range(a.dim() - dims, a.dim())), list(range(dims))] if isinstance(dims, int) else dims
    of_a = ascii_letters[: a.dim()]
    of_b = list(ascii_letters[a.dim() : a.dim() + b.dim()])
    for i, j in zip(*(side if isinstance(side, (list, tuple)) else [side] for side in pairs), strict=True):
        of_b[j] = of_a[i]
    of_y = [c for c in of_a if c not in of_b] + [c for c in of_b if c not in of_a]
    x, of_x, w, of_w = (b, of_b, a, of_a) if known(a) else (a, of_a, b, of_b)
    return _contracted(x, w, "".join(of_x), "".join(of_w), "".join(of_y))


def _contracted(x: Tensor, w: Tensor, of_x: str, of_w: str, of_y: str) -> Product | None:
    """x and w, whose dimensions these letters name, contracted to of_y."""
    many = [c for c in of_w if c in of_x and c in of_y]
    summed = [c for c in of_w if c in of_x and c not in of_y]
    free = [c for c in of_w if c not in of_x and c in of_y]
    rest = [c for c in of_x if c not in of_w]
    if len(many) > 1 or not summed or not free or len(many + summed + free) != len(of_w) or not set(rest) <= set(of_y):
        return None
    if any(x.shape[of_x.index(c)] != w.shape[of_w.index(c)] for c in many + summed):
        return None  # a size of one that stands for any
    n = w.shape[of_w.index(many[0])] if many else 1
    inputs, outputs = (_size(w, of_w, which) for which in (summed, free))
    return Product(
        x.permute([of_x.index(c) for c in many + rest + summed]).reshape(n, -1, inputs),
        lambda g: g.permute([of_y.index(c) for c in many + rest + free]).reshape(n, -1, outputs),
        lambda layout: layout.permute([of_w.index(c) for c in many + free + summed]).reshape(n, outputs, inputs),
    )


def _size(w: Tensor, letters: str, which: list[str]) -> int:
    size = 1
    for letter in which:
        size *= w.shape[letters.index(letter)]
    return size


def _letters(equation: Any, operands: list[Tensor]) -> list[str] | None:
    """The index letters of all operands and the result, which may be implicit; ellipses written out. None: not handled."""
    if not isinstance(equation, str):
        return None
    left, arrow, right = equation.replace(" ", "").partition("->")
    if not arrow:  # the letters that occur once, in the order of the alphabet, behind what the ellipses stand for
        right = "..." * ("..." in left) + "".join(sorted(c for c in left if c not in ".," and left.count(c) == 1))
    terms = left.split(",")
    hidden = [n.dim() - len(term.replace("...", "")) for n, term in zip(operands, terms, strict=True)]
    spare = "".join(c for c in ascii_uppercase if c not in equation)[: max(hidden)]
    terms = [term.replace("...", spare[len(spare) - n :]) for term, n in zip(terms, hidden, strict=True)]
    return [*terms, right.replace("...", spare)]


def _convolution(call: Call, known: Known) -> Product | None:
    """Of one to three dimensions, grouped or not: every window of the input, unfolded, is an x."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    said = dict(zip(names, call.args, strict=False)) | call.kwargs
    x, w, groups = said["input"], said["weight"], said.get("groups", 1)
    spatial = w.dim() - 2
    if not known(w) or known(x) or groups > MAX_GROUPS:
        return None
    batched = x.dim() == spatial + 2
    x = x.detach() if batched else x.detach()[None]
    stride, dilation = (_each(said.get(name, 1), spatial) for name in ("stride", "dilation"))
    kernel = w.shape[2:]
    x = F.pad(x, _padding(said.get("padding", 0), kernel, dilation))
    for i, (size, step, apart) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + i, apart * (size - 1) + 1, step)[..., ::apart]
    batch, channels, *places = x.shape[: 2 + spatial]
    x = x.reshape(batch, groups, channels // groups, *x.shape[2:]).movedim(1, 0).movedim(2, 2 + spatial)
    inputs, outputs = prod(w.shape[1:]), w.shape[0] // groups

    def flat(g: Tensor) -> Tensor:
        g = g if batched else g[None]
        return g.reshape(batch, groups, outputs, *places).movedim(1, 0).movedim(2, -1).reshape(groups, -1, outputs)

    return Product(x.reshape(groups, -1, inputs), flat, lambda layout: layout.reshape(groups, outputs, inputs))


def _each(value: Any, count: int) -> list[int]:
    """One number for all dimensions, or one for each."""
    return [int(value)] * count if isinstance(value, int) else [int(v) for v in value] * (count // len(value))


def _padding(padding: Any, kernel: torch.Size, dilation: list[int]) -> list[int]:
    """As F.pad has it, the last dimension first."""
    if padding == "valid":
        return [0] * (2 * len(kernel))
    if padding == "same":  # what is odd is added behind
        wide = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [n for total in reversed(wide) for n in (total // 2, total - total // 2)]
    return [n for p in reversed(_each(padding, len(kernel))) for n in (p, p)]


def _grouped(call: Call, known: Known) -> list[Product] | None:
    """torch._grouped_mm: rows of x [N, I] up to offs[k] meet matrix k of w [n, I, O]."""
    x, w, offs = (*call.args, *(call.kwargs[k] for k in ("self", "mat2", "mat_b", "offs") if k in call.kwargs))[:3]
    if not known(w) or known(x) or x.dim() != 2 or w.dim() != 3 or not isinstance(offs, Tensor):
        return None
    ends = offs.tolist()
    spans = [slice(first, last) for first, last in zip([0, *ends], ends, strict=False)]
    return [
        Product(x[span][None], lambda g, span=span: g[span][None], lambda layout, k=k: layout[k].mT[None])  # type: ignore[misc]
        for k, span in enumerate(spans)
    ]


PRODUCTS: dict[str, Callable[[Call, Known], Product | list[Product] | None]] = {
    "linear": _linear,
    "inner": _inner,
    "addmm": _addmm,
    "addmv": _addmm,
    "baddbmm": _addmm,
    "addbmm": _addbmm,
    "tensordot": _tensordot,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "_grouped_mm": _grouped,
    "grouped_mm": _grouped,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "mv": _matmul,
    "einsum": _einsum,
}
