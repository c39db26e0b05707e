"""`PackedWeight`: a tensor that stays packed and stands where a float parameter stood, whatever the module does with it.

What will surprise you:
* It is a tensor subclass that sees the operations below autograd. Casts, transposes and indexing of a bank give another
  PackedWeight over the same words; a product with x goes to `quant_linear`, an embedding unpacks the rows it needs.
  Anything else gets the dense weights, made for this one use: right, only slower.
* So `F.linear(x, bank[i].to(x.dtype))`, `x @ w.T` and tied heads work as they are written, and torch.compile and
  gradients with respect to x with them. The weight itself takes no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pgolf.kernels.launch import FLOATS
from pgolf.kernels.packed import Packed, dense, pack_fitting, width_of
from pgolf.kernels.quant_linear import quant_linear

aten = torch.ops.aten
_PARTS = ("low", "high", "row_scale", "col_scale")


class PackedWeight(Tensor):
    """A matrix [R, C], a bank [n, R, C] of them, or the transpose of a matrix, in `bits` bits a code.

    low, high, row_scale, col_scale: as in `Packed`, with a dimension in front for a bank.
    """

    low: Tensor
    high: Tensor | None
    row_scale: Tensor | None
    col_scale: Tensor | None
    bits: int
    cols: int
    turned: bool

    @staticmethod
    def __new__(
        cls, parts: Sequence[Tensor | None], bits: int, cols: int, dtype: torch.dtype, turned: bool = False
    ) -> PackedWeight:
        low = parts[0]
        assert low is not None
        shape = (*low.shape[:-1], cols)
        shape = shape[::-1] if turned else shape
        self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=low.device, requires_grad=False)
        for name, part in zip(_PARTS, parts, strict=True):
            setattr(self, name, part)
        self.bits, self.cols, self.turned = bits, cols, turned
        return self

    @staticmethod
    def of(
        matrices: Sequence[tuple[Tensor, Tensor | None, Tensor | None]], dtype: torch.dtype, bits: int | None = None
    ) -> PackedWeight:
        """From (codes, row scales, column scales) of a matrix, or of each of a bank. ValueError for codes above 8 bits.

        bits: that hold all codes, where it is known, so that nobody waits for the device to say it.
        """
        known = (
            width_of(min(int(c.min()) for c, _, _ in matrices), max(int(c.max()) for c, _, _ in matrices))
            if bits is None
            else bits
        )
        if known is None:
            raise ValueError("the codes need more bits than a packed matrix has")
        packed = [pack_fitting(*matrix, known) for matrix in matrices]
        columns = [[getattr(p, name) for p in packed] for name in _PARTS]
        parts = [c[0] if len(c) == 1 or c[0] is None else torch.stack(c) for c in columns]
        return PackedWeight(parts, packed[0].bits, packed[0].cols, dtype)

    @property
    def parts(self) -> list[Tensor | None]:
        return [getattr(self, name) for name in _PARTS]

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that it takes."""
        return sum(part.nbytes for part in self.parts if part is not None)

    def packed(self) -> Packed:
        """The matrix, not transposed."""
        return Packed(self.low, self.high, self.row_scale, self.col_scale, self.bits, self.cols)

    def dense(self) -> Tensor:
        """Its weights, in its dtype."""
        if self.low.dim() == 3:
            return torch.stack([self.slice(i).dense() for i in range(len(self.low))])
        weights = dense(self.packed(), self.dtype)
        return weights.T if self.turned else weights

    def slice(self, index: int) -> PackedWeight:
        """One matrix of a bank."""
        return self._like([None if part is None else part[index] for part in self.parts])

    def _like(
        self, parts: Sequence[Tensor | None] | None = None, dtype: torch.dtype | None = None, turned: bool | None = None
    ) -> PackedWeight:
        turned = self.turned if turned is None else turned
        return PackedWeight(self.parts if parts is None else parts, self.bits, self.cols, dtype or self.dtype, turned)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        found: Any = memo.get(id(self))
        if found is None:
            is_parameter = isinstance(self, nn.Parameter)  # torch marks one, and its copy is to be one
            found = nn.Parameter(_clone(self), requires_grad=False) if is_parameter else _clone(self)
            memo[id(self)] = found
        copied: PackedWeight = found
        return copied

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # torch's takes one argument more
        return f"PackedWeight({list(self.shape)}, bits={self.bits}, dtype={self.dtype}, device={self.device})"

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        present = [name for name in _PARTS if getattr(self, name) is not None]
        return present, (self.bits, self.cols, self.dtype, self.turned)

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: Any, size: Any, stride: Any) -> PackedWeight:
        return PackedWeight([inner.get(name) for name in _PARTS], *meta)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares a function that is not of the class
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        handled = _HANDLERS[func](*args, **(kwargs or {})) if func in _HANDLERS else None
        if handled is not None:
            return handled
        args, kwargs = tree_map_only(PackedWeight, PackedWeight.dense, (args, kwargs or {}))
        return func(*args, **kwargs)


def _same(weight: PackedWeight, **_: Any) -> PackedWeight:
    return weight._like()


def _clone(weight: PackedWeight, **_: Any) -> PackedWeight:
    return weight._like([None if part is None else part.clone() for part in weight.parts])


def _cast(weight: PackedWeight, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> PackedWeight | None:
    if dtype is not None and not dtype.is_floating_point:
        return None
    parts = weight.parts
    if device is not None:
        parts = [None if part is None else part.to(device) for part in parts]
    return weight._like(parts, dtype)


def _transpose(weight: PackedWeight, first: int = 0, second: int = 1) -> PackedWeight | None:
    if weight.dim() != 2 or {first % 2, second % 2} != {0, 1}:
        return None
    return weight._like(turned=not weight.turned)


def _permute(weight: PackedWeight, dims: Sequence[int]) -> PackedWeight | None:
    return _transpose(weight) if [d % weight.dim() for d in dims] == [1, 0] else None


def _select(weight: PackedWeight, dim: int, index: int) -> PackedWeight | None:
    return weight.slice(index) if weight.low.dim() == 3 and dim == 0 else None


def _embedding(weight: Tensor, index: Tensor, *_: Any) -> Tensor | None:
    if not isinstance(weight, PackedWeight) or weight.turned:
        return None
    rows = dense(weight.packed().rows(index.reshape(-1)), weight.dtype)
    return rows.view(*index.shape, weight.cols)


def _product(x: Tensor, weight: Tensor) -> Tensor | None:
    if isinstance(x, PackedWeight) or not isinstance(weight, PackedWeight) or not weight.turned:
        return None
    if x.dtype not in FLOATS:
        return None
    return quant_linear(x, weight.packed())


def _product_and_bias(bias: Tensor, x: Tensor, weight: Tensor, **scaled: Any) -> Tensor | None:
    product = None if scaled else _product(x, weight)
    return None if product is None else product + bias


_HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.detach.default: _same,
    aten.alias.default: _same,
    aten.clone.default: _clone,
    aten._to_copy.default: _cast,
    aten.t.default: _transpose,
    aten.transpose.int: _transpose,
    aten.permute.default: _permute,
    aten.select.int: _select,
    aten.embedding.default: _embedding,
    aten.mm.default: _product,
    aten.addmm.default: _product_and_bias,
}
