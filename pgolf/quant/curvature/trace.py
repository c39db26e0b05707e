"""Follow a model's parameters, through whatever is done to them, to the products and lookups that use them.

What will surprise you:
* Hooks on nn.Linear see neither `F.linear(x, bank[i].to(x.dtype))` nor `x @ w.T`. A TorchFunctionMode sees every call.
* Beside every tensor that is made of a parameter's elements stands a *layout*: a tensor on the meta device, which has
  sizes, strides and an offset but no memory. Views are taken of both, so the layout's strides and offset always say
  which elements of the parameter are in use; a "view" that would have to copy no longer shares the layout's storage.
* Only calls inside the `with` block are seen: what a checkpointed block computes again in the backward pass is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pgolf.errors import CurvatureError
from pgolf.models.calls import is_transformed
from pgolf.quant.curvature import attention
from pgolf.quant.curvature.products import PRODUCTS, Call, Product, flattened, function_name
from pgolf.quant.slices import sides

# fmt: off
CASTS = {
    "to", "float", "bfloat16", "half", "double", "type", "type_as", "cuda", "cpu",
    "contiguous", "clone", "detach", "data", "requires_grad_", "positive",
}
TRANSPOSES = {"t", "T", "mT", "H", "mH", "adjoint", "transpose", "swapaxes", "swapdims"}
VIEWS = TRANSPOSES | {
    "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "permute", "movedim", "moveaxis",
    "squeeze", "unsqueeze", "expand", "expand_as", "select", "narrow", "__getitem__",
    "chunk", "split", "split_with_sizes", "tensor_split", "unbind",
}
# fmt: on
SCALINGS = {"mul", "multiply", "div", "divide", "true_divide"}
TABLES = {"embedding", "embedding_bag"}  # of torch.nn.functional: their options are named once torch hands them over
PADDING = "padding_idx"
OPTIMIZERS = {"scale_grad_by_freq": False, "sparse": False}  # what they do to gradients is for an optimizer to see
LOOKUPS = {"embedding", "index_select", "__getitem__"}
DROPOUTS = {"dropout", "alpha_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d"}


class Piece(NamedTuple):
    """`scale` times the elements of the parameter `name` [shape] that the meta tensor `layout` picks."""

    name: str
    shape: torch.Size
    layout: Tensor
    scale: float = 1.0


class Weight(NamedTuple):
    """A tensor made of one piece, or a matrix that `torch.cat` joined from several along `dim`."""

    pieces: tuple[Piece, ...]
    dim: int = 0


@dataclass(frozen=True)
class Rectangle:
    """Where a used matrix [outputs, inputs] lies in a parameter: a rectangle of one slice of it.

    index: slice of a bank, 0 in a matrix. rows, cols: the rectangle. outputs, inputs: its place in the used matrix. whole: the
    parameter has more dimensions and is the one matrix [O, I·k...] here.
    transposed: the parameter's rows are inputs and its columns outputs. scale: used element / parameter's element.
    """

    name: str
    index: int
    rows: slice
    cols: slice
    outputs: slice
    inputs: slice
    transposed: bool = False
    scale: float = 1.0
    whole: bool = False


class Sink(Protocol):
    """What is told of every use, in the order of execution."""

    def product(self, rectangles: Sequence[Rectangle], x: Tensor, y: Tensor, flat: Callable[[Tensor], Tensor]) -> None:
        """A used matrix [O, I] that the rectangles fill takes x [N, I] to flat(y) [N, O]; `flat` fits y's gradient too."""

    def lookup(self, rectangle: Rectangle, ids: Tensor, y: Tensor, without: int | None = None) -> None:
        """y [..., C] holds rows `ids` [...] of the rectangle. without: the row to which no gradient comes."""

    def unknown(self, name: str, function: str) -> None:
        """Parameter `name` went into a function through which it cannot be followed."""


class Tracer(TorchFunctionMode):
    """Reports to `sink` how the matrices and banks among `parameters` are used inside the `with` block.

    Raises CurvatureError for dropout that model.eval() does not switch off.
    """

    def __init__(self, parameters: Mapping[str, Tensor], sink: Sink) -> None:
        super().__init__()
        self._sink = sink
        # Tensors are kept with their ids: an id may not be used again while it stands for a weight.
        self._known: dict[int, tuple[Tensor, Weight]] = {}
        self._made: dict[int, Tensor] = {}  # made of parameters alone, in a way that is not followed
        for name, value in parameters.items():
            if value.dim() > 1:
                layout = torch.empty(value.shape, dtype=value.dtype, device="meta")
                self._note(value, Weight((Piece(name, value.shape, layout),)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = Call(function_name(func), func, args, kwargs or {}, None)
        _refuse_dropout(call)
        result = self._written_out(call)
        if result is not None:
            return result
        call = _true_gradients(call)
        result = func(*call.args, **call.kwargs)
        weights = [w for w in map(self._weight, flattened(*args, *call.kwargs.values())) if w is not None]
        if weights and any(map(is_transformed, (*flattened(*args, *call.kwargs.values()), *flattened(result)))):
            for piece in (piece for weight in weights for piece in weight.pieces):
                self._sink.unknown(piece.name, f"{call.name} inside torch.func")
        elif weights and any(isinstance(r, Tensor) for r in flattened(result)) and call.name != "grad":
            self._step(call._replace(result=result), weights)
        return result

    def _written_out(self, call: Call) -> Any:
        """The result of a call that is followed inside, None of all others."""
        if call.name != attention.NAME:
            return None
        with self:
            return attention.written_out(call.args, call.kwargs)

    def _weight(self, value: Any) -> Weight | None:
        known = self._known.get(id(value))
        return None if known is None else known[1]

    def _is_weight(self, value: Any) -> bool:
        return id(value) in self._known

    def _note(self, value: Tensor, weight: Weight) -> None:
        self._known[id(value)] = (value, weight)

    def _step(self, call: Call, weights: list[Weight]) -> None:
        weight = weights[0]
        alone = len(weights) == 1
        if alone and (self._moved(weight, call) or self._added_to(weight, call) or self._used(weight, call)):
            return
        if not alone and self._joined(call):
            return
        for piece in (piece for weight in weights for piece in weight.pieces):
            self._sink.unknown(piece.name, call.name)
        if isinstance(call.result, Tensor) and all(self._is_made(v) for v in _tensors(call)):
            self._made[id(call.result)] = call.result

    def _is_made(self, value: Tensor) -> bool:
        """Whether a tensor is made of parameters alone."""
        return self._is_weight(value) or id(value) in self._made

    def _added_to(self, weight: Weight, call: Call) -> bool:
        """W + A·B with a product of parameters: what is done with the sum is done with W."""
        others = [v for v in _tensors(call) if not self._is_weight(v)]
        if call.name not in ("add", "__radd__") or len(others) != 1 or not self._is_made(others[0]):
            return False
        if call.result.shape != others[0].shape or any(call.result.shape != w.shape for w in _tensors(call)):
            return False
        if call.kwargs.get("alpha", 1) != 1:
            return False
        self._note(call.result, weight)
        return True

    def _moved(self, weight: Weight, call: Call) -> bool:
        """A cast, a scaling or a view: note the elements under the new tensor."""
        if call.name in SCALINGS and isinstance(call.result, Tensor) and not call.kwargs:
            return self._scaled(weight, call)
        if not call.args or self._weight(call.args[0]) is not weight:
            return False
        if call.name in CASTS and isinstance(call.result, Tensor):
            self._note(call.result, weight)
            return True
        return call.name in VIEWS and self._viewed(weight, call)

    def _scaled(self, weight: Weight, call: Call) -> bool:
        """Times or divided by a number or a tensor of one element."""
        divided = call.name not in ("mul", "multiply")
        first = self._weight(call.args[0]) is weight
        factor = call.args[1] if first else call.args[0]
        if (divided and not first) or (isinstance(factor, Tensor) and factor.numel() != 1):
            return False
        number = float(factor.detach()) if isinstance(factor, Tensor) else float(factor)
        number = 1 / number if divided else number
        pieces = tuple(piece._replace(scale=piece.scale * number) for piece in weight.pieces)
        self._note(call.result, weight._replace(pieces=pieces))
        return True

    def _viewed(self, weight: Weight, call: Call) -> bool:
        if len(weight.pieces) > 1:
            return self._flipped(weight, call)
        (piece,) = weight.pieces
        try:
            layouts = call.func(piece.layout, *call.args[1:], **call.kwargs)
        except (RuntimeError, TypeError, IndexError, NotImplementedError):
            return False
        result = call.result
        pairs = [(result, layouts)] if isinstance(result, Tensor) else list(zip(result, layouts, strict=True))
        if not all(_views(layout, piece.layout) for _, layout in pairs):
            return False
        for value, layout in pairs:
            self._note(value, Weight((piece._replace(layout=layout),)))
        return True

    def _flipped(self, weight: Weight, call: Call) -> bool:
        """A joined matrix may only be transposed."""
        if call.name not in TRANSPOSES:
            return False
        pieces = tuple(piece._replace(layout=piece.layout.mT) for piece in weight.pieces)
        self._note(call.result, Weight(pieces, 1 - weight.dim))
        return True

    def _joined(self, call: Call) -> bool:
        """torch.cat of matrices that are all followed."""
        if call.name not in ("cat", "concat", "concatenate") or call.result.dim() != 2:
            return False
        parts = [self._weight(part) for part in call.args[0]]
        dim = (call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)) % 2
        if any(part is None or (len(part.pieces) > 1 and part.dim != dim) for part in parts):
            return False
        self._note(call.result, Weight(tuple(piece for part in parts if part for piece in part.pieces), dim))
        return True

    def _used(self, weight: Weight, call: Call) -> bool:
        """A lookup or a product: tell the sink."""
        if not isinstance(call.result, Tensor):
            return False
        if call.name in LOOKUPS:
            return self._looked_up(weight, call)
        read = PRODUCTS.get(call.name)
        found = read(call, self._is_weight) if read else None
        products = [found] if isinstance(found, Product) else found or []
        matrices = [_matrices(weight, product) for product in products]
        if not products or not all(matrices):
            return False
        for product, several in zip(products, matrices, strict=True):
            for k, rectangles in enumerate(several or []):
                self._sink.product(rectangles, product.x[k].detach(), call.result, partial(_take, product.flat, k))
        return True

    def _looked_up(self, weight: Weight, call: Call) -> bool:
        """Rows of a matrix by their numbers: F.embedding(ids, w), w[ids], index_select(w, 0, ids)."""
        operands = [*call.args, *call.kwargs.values()]
        ids = next((a for a in operands if isinstance(a, Tensor) and a.dtype in (torch.int32, torch.int64)), None)
        piece = weight.pieces[0]
        if ids is None or len(weight.pieces) > 1 or call.result.shape != (*ids.shape, *piece.layout.shape[1:]):
            return False
        rectangles = locate(piece) if piece.layout.dim() == 2 else None
        if not rectangles or len(rectangles) > 1 or rectangles[0].transposed or piece.scale != 1.0:
            return False
        self._sink.lookup(rectangles[0], ids.detach(), call.result, call.kwargs.get(PADDING))
        return True


def _true_gradients(call: Call) -> Call:
    """A lookup whose gradients are those of the loss: dense, of their own size, and of a padding row as of any other.

    No gradient comes to a padding row, but whoever reads it feels an error in it. A row of zeros stays as it was: it is coded
    without any error, and a norm behind it makes gradients of it so large that nothing else would count. In a bag it stays too:
    there it is left out, not read.
    """
    if call.name not in TABLES:
        return call
    options: dict[str, Any] = {name: value for name, value in OPTIMIZERS.items() if name in call.kwargs}
    if call.name == "embedding" and call.kwargs.get(PADDING) is not None:
        _, weight = (*call.args, *(call.kwargs[name] for name in ("input", "weight") if name in call.kwargs))[:2]
        row = call.kwargs[PADDING] % len(weight)
        options[PADDING] = row if not bool(weight.detach()[row].any()) else None
    return call._replace(kwargs=call.kwargs | options)


def _tensors(call: Call) -> list[Tensor]:
    """All that go into a call."""
    return [v for v in flattened(*call.args, *call.kwargs.values()) if isinstance(v, Tensor)]


def _take(flat: Callable[[Tensor], Tensor], k: int, g: Tensor) -> Tensor:
    return flat(g)[k]


def _refuse_dropout(call: Call) -> None:
    if call.name in DROPOUTS and call.kwargs.get("p", 0.5) > 0 and call.kwargs.get("training", False):
        raise CurvatureError(f"the model applies {call.name} in eval mode: give it training=self.training")
    if call.name == "scaled_dot_product_attention" and call.kwargs.get("dropout_p", 0.0) > 0:
        raise CurvatureError("the model's attention applies dropout_p in eval mode: make it 0 unless self.training")


def _views(layout: Any, base: Tensor) -> bool:
    """Whether `layout` is a view of the same (virtual) elements."""
    return (
        isinstance(layout, Tensor)
        and layout.dtype == base.dtype
        and layout.untyped_storage()._cdata == base.untyped_storage()._cdata
    )


def _matrices(weight: Weight, product: Product) -> list[list[Rectangle]] | None:
    """For each of the n used matrices, the rectangles that fill it."""
    matrices: list[list[Rectangle]] = [[] for _ in range(product.x.shape[0])]
    outputs = inputs = 0
    for piece in weight.pieces:
        layout = product.matrix(piece.layout)
        if not _views(layout, piece.layout):
            return None
        for k in range(len(matrices)):
            rectangles = locate(piece._replace(layout=layout[k]), outputs, inputs)
            if rectangles is None:
                return None
            matrices[k] += rectangles
        stacked = layout.shape[2] == product.x.shape[2]
        outputs, inputs = (outputs + layout.shape[1], 0) if stacked else (0, inputs + layout.shape[2])
    return matrices


def locate(piece: Piece, output: int = 0, inp: int = 0) -> list[Rectangle] | None:
    """The rectangles of a used matrix [O, I] whose first element stands at (output, inp); None if no rectangles."""
    bank, *_ = bases = [sides(tuple(piece.shape)), (1, piece.shape[0], prod(piece.shape[1:]))]
    for base in bases if len(piece.shape) == 3 else [bank]:
        found = _located(piece, base, len(piece.shape) > 3 or base is not bank, output, inp)
        if found is not None:
            return found
    return None


def _located(piece: Piece, base: tuple[int, int, int], whole: bool, output: int, inp: int) -> list[Rectangle] | None:
    """As `locate`, in the slices of `base`."""
    _, n_rows, n_cols = base
    n_out, n_in = piece.layout.shape
    down, right = (int(s) if n > 1 else 0 for s, n in zip(piece.layout.stride(), piece.layout.shape, strict=True))
    start = int(piece.layout.storage_offset())
    if 0 in (n_out, n_in) or (n_out > 1 and down == 0) or (n_in > 1 and right == 0):
        return None
    for transposed in (False,) if whole else (False, True):
        tall, wide, row_stride, col_stride = (n_in, n_out, right, down) if transposed else (n_out, n_in, down, right)
        if row_stride % n_cols or start % n_cols + col_stride * (wide - 1) >= n_cols:
            continue
        cols = _slice(start % n_cols, col_stride, wide)
        rectangles = []
        for index, rows, first, last in _by_slice(start // n_cols, row_stride // n_cols, tall, n_rows):
            outputs = slice(output, output + n_out) if transposed else slice(output + first, output + last)
            inputs = slice(inp + first, inp + last) if transposed else slice(inp, inp + n_in)
            rectangles.append(Rectangle(piece.name, index, rows, cols, outputs, inputs, transposed, piece.scale, whole))
        return rectangles
    return None


def _slice(start: int, step: int, count: int) -> slice:
    step = max(step, 1)
    return slice(start, start + step * (count - 1) + 1, step)


def _by_slice(first: int, step: int, count: int, height: int) -> Iterator[tuple[int, slice, int, int]]:
    """Cut rows first, first + step, ... of a stack of matrices: (matrix, rows in it, from which of the count, to)."""
    step, done = max(step, 1), 0
    while done < count:
        row = first + done * step
        here = min(count - done, (height - 1 - row % height) // step + 1)
        yield row // height, _slice(row % height, step, here), done, done + here
        done += here
