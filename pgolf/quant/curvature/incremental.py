"""Run an unknown causal model on one new position at a time, as with a KV cache, without knowing where its keys are.

What will surprise you:
* The model is always called with ids [N, T] of one fixed length, so its shapes, positions and masks are those of a whole
  pass. Of an operation that treats every position alike (a product with a weight, a norm, an activation) only the new
  position is computed, and handed on as if it stood at all T of them: expanded, with a stride of zero.
* What is read across positions (the keys and values of attention, a token shift) is kept at all of them, and the new one
  written into it. Which those are, and which operations treat every position alike, is seen and tried out in one whole
  pass over real, varied ids (`observed`). An operation that does not, or is not listed here, is computed whole.
* What cannot be followed (other calls than the first time, unknown changes in place) raises CannotIncrement. Operations
  that no function mode sees (an own autograd.Function) are not noticed: compare with a whole pass before use.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgolf.models.logits import Logits
from pgolf.quant.curvature.positions import (
    ATTENTION,
    CHOICES,
    POINTWISE,
    CannotIncrement,
    Choice,
    Positions,
    at_each,
)
from pgolf.quant.curvature.products import flattened

# fmt: off
UNREAD = {  # look at a tensor's shape alone
    "zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full",
    "size", "dim", "stride", "numel", "is_floating_point", "is_contiguous", "shape", "dtype", "device", "ndim",
    "is_cuda", "is_nested", "requires_grad", "layout",
}
# fmt: on
CLOSE = 1e-2  # of the values: rounding differs with the number of rows


@dataclass(frozen=True)
class Step:
    """What one call of the model is to its positions.

    choice: how its operands are cut to compute one position, None where it is computed whole. dim: of the result, where
    positions lie; order: the result's dims, those of the widest stride first. alias: the result is a view of an operand.
    whole: it is read across positions, and takes num_bytes a row.
    """

    name: str
    choice: Choice | None = None
    dim: int = 0
    order: tuple[int, ...] = ()
    alias: bool = False
    whole: bool = False
    num_bytes: int = 0


class Plan(NamedTuple):
    """The calls of a model on ids of `length` positions; spare: bytes a row that are made anew in every pass."""

    length: int
    steps: tuple[Step, ...]
    spare: int

    @property
    def num_bytes(self) -> int:
        """Memory of a row of ids."""
        return self.spare + sum(step.num_bytes for step in self.steps if step.whole)

    def all_kept(self) -> Plan:
        """Every result kept at all positions, for models that read across them where nobody sees it."""
        return self._replace(steps=tuple(replace(step, whole=step.choice is not None) for step in self.steps))


def observed(run: Logits, ids: Tensor) -> Plan:
    """What `run` does, seen in one whole pass over ids int64 [N, T]: varied ones, N > 1. Raises CannotIncrement."""
    observer = _Observer(*ids.shape)
    with observer:
        run(ids)
    return Plan(ids.shape[1], tuple(observer.steps), observer.spare // len(ids))


class _Made(NamedTuple):
    """A result that may be computed at one position alone: the number of its step, the stride of its positions."""

    number: int
    stride: int
    result: Tensor  # held, so that its address stays its own


class _Observer(Positions):
    """Runs every call whole, tries which of them can be cut, and notes what is read across positions."""

    def __init__(self, rows: int, length: int) -> None:
        super().__init__(rows, length)
        self.steps: list[Step] = []
        self.spare = 0
        self._made: dict[int, _Made] = {}

    def alike(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        choices = CHOICES if name != ATTENTION else CHOICES[:1]
        found = next((c for c in choices if self._fits(name, func, args, kwargs, c, result)), None)
        if found is None:
            self._read(args, kwargs, result)
            self.steps.append(Step(name))
            return result
        dim = _known(self._dim_of(result))
        _, met = self.computed(name, func, args, kwargs, found, 0)
        for value, where in met:
            self._consumed(value, where)
        flat = result.shape[dim] != self.length
        alias = not flat and any(_address(value) == _address(result) for value, _ in met)
        order = tuple(sorted(range(result.dim()), key=lambda d: -result.stride(d)))
        if not alias:
            self._made[_address(result)] = _Made(len(self.steps), result.stride(dim), result)
        self.steps.append(Step(name, found, dim, order, alias, flat, result.nbytes // self.rows))
        return result

    def in_place(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if not isinstance(args[0], Tensor) or _address(args[0]) not in self._made:
            for value in flattened(*args[1:], *kwargs.values()):
                self._consumed(value, None)
            return func(*args, **kwargs)
        if name.strip("_").removeprefix("i") not in POINTWISE and name.strip("_") not in POINTWISE:
            raise CannotIncrement(f"{name} in place")
        try:
            _, _, met = self.cut(name, args, kwargs, at_each, 0)
        except ValueError as error:
            raise CannotIncrement(f"{name} in place") from error
        for value, where in met:
            self._consumed(value, where)
        return func(*args, **kwargs)

    def other(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if name not in UNREAD:
            self._read(args, kwargs, result)
        return result

    def _fits(self, name: str, func: Any, args: Any, kwargs: Any, choice: Choice, result: Any) -> bool:
        """Whether single positions of the result are what comes of operands that are cut so."""
        if not isinstance(result, Tensor) or (dim := self._dim_of(result)) is None:
            return False
        for position in (self.length // 3, self.length - 1):
            try:
                fresh, _ = self.computed(name, func, args, kwargs, choice, position)
            except (RuntimeError, TypeError, IndexError, ValueError):
                return False
            wanted = self.at(result, dim, position)
            if not isinstance(fresh, Tensor) or fresh.shape != wanted.shape or fresh.dtype != wanted.dtype:
                return False
            scale = CLOSE * float(torch.where(wanted.isfinite(), wanted, 0).float().abs().mean())
            if not torch.allclose(fresh.float(), wanted.float(), rtol=CLOSE, atol=scale):
                return False
        return True

    def _dim_of(self, result: Tensor) -> int | None:
        """Where the positions of a result lie: the rows of scores [..., T, T]."""
        dims = self.dims(result)
        if len(dims) == 1:
            return dims[0]
        return result.dim() - 2 if dims == [result.dim() - 2, result.dim() - 1] else None

    def _consumed(self, value: Any, where: int | None) -> None:
        """An operand is read: at the position of its result alone, along dim `where`, or across positions (None)."""
        made = self._made.get(_address(value)) if isinstance(value, Tensor) and self.dims(value) else None
        if made is not None and (where is None or value.stride(where) != made.stride):
            self.steps[made.number] = replace(self.steps[made.number], whole=True)

    def _read(self, args: Any, kwargs: Any, result: Any) -> None:
        """A call that is always computed whole: what it reads must be whole, but for views that keep positions apart."""
        results = [r for r in flattened(result) if isinstance(r, Tensor)]
        operands = [a for a in flattened(*args, *kwargs.values()) if isinstance(a, Tensor)]
        addresses = {_address(value) for value in operands}
        self.spare += sum(r.nbytes for r in results if _address(r) not in addresses)
        for value in operands:
            made = self._made.get(_address(value))
            if made is None or not results or not all(self._keeps_apart(r, made) for r in results):
                self._consumed(value, None)

    def _keeps_apart(self, view: Tensor, made: _Made) -> bool:
        """Whether a view still has all positions of a result, in one dimension."""
        if _address(view) != _address(made.result):
            return False
        along = [d for d, n in enumerate(view.shape) if n == self.length and view.stride(d) == made.stride]
        return len(along) == 1


class Incremental(Positions):
    """`run` (ids int64 [rows, T] -> logits [rows, T, V]) one position after the other, from the first on."""

    def __init__(self, run: Logits, plan: Plan, rows: int) -> None:
        super().__init__(rows, plan.length)
        self._run, self._steps = run, plan.steps
        self._position = self._calls = 0
        self._kept: dict[int, Tensor] = {}  # by number of the step

    def logits(self, ids: Tensor, position: int) -> Tensor:
        """Logits [rows, V] at `position`, where all positions before it were asked for, one after the other.

        Raises CannotIncrement.
        """
        self._position, self._calls = position, 0
        with self:
            found = self._run(ids)
        if self._calls != len(self._steps):
            raise CannotIncrement("fewer calls than the first time")
        return found[:, position]

    def alike(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        number, self._calls = self._calls, self._calls + 1
        if number >= len(self._steps) or self._steps[number].name != name:
            raise CannotIncrement(f"another call of {name} than the first time")
        step = self._steps[number]
        if step.choice is None or (step.alias and not any(map(self._is_thin, flattened(*args, *kwargs.values())))):
            return func(*args, **kwargs)
        fresh, met = self.computed(name, func, args, kwargs, step.choice, self._position)
        if fresh.dim() != len(step.order):
            raise CannotIncrement(f"another shape from {name} than the first time")
        if step.whole and not step.alias:
            return self._renewed(number, step, fresh)
        if not step.alias and any(_address(value) == _address(fresh) for value, _ in met):
            fresh = (
                fresh.clone()
            )  # at one position it need not be copied, at all it was: changes must not reach the operand
        return fresh.expand([self.length if d == step.dim else size for d, size in enumerate(fresh.shape)])

    def in_place(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        target = args[0]
        ours = isinstance(target, Tensor) and (self._is_thin(target) or _address(target) in self._addresses())
        if not ours:
            return func(*args, **kwargs)
        cut, named, _ = self.cut(name, args, kwargs, at_each, self._position)
        func(*cut, **named)
        return target

    def other(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)

    def _renewed(self, number: int, step: Step, fresh: Tensor) -> Tensor:
        """The kept result with `fresh` at the new position."""
        kept = self._kept.get(number)
        if kept is None:
            shape = list(fresh.shape)
            shape[step.dim] *= self.length
            kept = torch.empty_permuted(shape, step.order, dtype=fresh.dtype, device=fresh.device).zero_()
            self._kept[number] = kept
        self.at(kept, step.dim, self._position).copy_(fresh)
        return kept

    def _is_thin(self, value: Any) -> bool:
        """Whether only the new position of a tensor is there."""
        return isinstance(value, Tensor) and any(value.stride(d) == 0 for d in self.dims(value))

    def _addresses(self) -> set[int]:
        return {_address(kept) for kept in self._kept.values()}


def _known(dim: int | None) -> int:
    assert dim is not None
    return dim


def _address(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()
