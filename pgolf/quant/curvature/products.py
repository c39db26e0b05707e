"""The ways in which PyTorch code writes a product with a weight, brought to one form: y = x Wᵀ, for one or n matrices.

Nothing is computed. A handler reads a finished call and says how x, the result and the weight's layout are to be viewed;
it returns None for what it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from string import ascii_uppercase
from typing import Any, NamedTuple

from torch import Tensor


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
    """Two operands; every letter of the weight is contracted, free, or (at most one) counts matrices."""
    operands = list(flattened(*call.args[1:]))
    letters = _letters(call.args[0], operands)
    if letters is None:
        return None
    of_x, of_w, of_y = (letters[1], letters[0], letters[2]) if known(operands[0]) else letters
    x, w = operands[::-1] if known(operands[0]) else operands
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
    """The index letters of both operands and the result, which may be implicit; ellipses written out. None: not handled."""
    if not isinstance(equation, str) or len(operands) != 2:
        return None
    left, arrow, right = equation.replace(" ", "").partition("->")
    if not arrow:  # the letters that occur once, in the order of the alphabet, behind what the ellipses stand for
        right = "..." * ("..." in left) + "".join(sorted(c for c in left if c not in ".," and left.count(c) == 1))
    terms = left.split(",")
    hidden = [n.dim() - len(term.replace("...", "")) for n, term in zip(operands, terms, strict=True)]
    spare = "".join(c for c in ascii_uppercase if c not in equation)[: max(hidden)]
    terms = [term.replace("...", spare[len(spare) - n :]) for term, n in zip(terms, hidden, strict=True)]
    terms.append(right.replace("...", spare))
    return None if any(len(set(term)) != len(term) for term in terms) else terms


PRODUCTS: dict[str, Callable[[Call, Known], Product | None]] = {
    "linear": _linear,
    "addmm": _addmm,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "mv": _matmul,
    "einsum": _einsum,
}
