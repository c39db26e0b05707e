"""How a model wants to be called, and where its logits pass by: what `logits.Logits` tries, one way after the other.

A trainer's `forward` may take ids alone, ids and targets, keywords or a batch, and may return logits, the last
position's only, or nothing but a loss. The loss is then the place to look: `cross_entropy` receives the logits.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pgolf.errors import CurvatureError, ModelError

IDS = ("input_ids", "ids", "idx", "tokens", "token_ids", "inputs", "input_seq", "x")
TARGETS = ("targets", "target", "labels", "label", "y", "target_ids", "target_seq", "tgt", "next_tokens")
KNOWN: dict[
    str, Callable[[Tensor], Tensor]
] = {  # what else a model may want that ids [B, T] alone tell, nothing padded
    "attention_mask": torch.ones_like,
    "position_ids": lambda ids: torch.arange(ids.shape[-1], device=ids.device).expand_as(ids),
}
NO_TARGET = re.compile(r"mask|pos|cache|state|segment|type|len|past|image", re.I)  # what else a model may ask for
BATCHES = ("batch", "data", "sample", "examples")
COPIES = {"to", "int", "long", "type", "contiguous", "clone", "cat", "concat", "flatten", "reshape", "pad", "cuda"}


@dataclass(frozen=True)
class Way:
    """One way to call a model with ids [B, T].

    targets: the ids are given as targets too, so that a loss is computed. extra: columns that the model cuts off for
    its own targets, and that are added beforehand. autocast: the dtype to compute in, for weights of mixed dtypes.
    thaws: tensors made under torch.inference_mode (a rotary cache, after an evaluation) are copied before use.
    alone: the model takes one sequence at a time; flat: without the dimension of the batch, as ids [T].
    """

    call: Callable[[Tensor], Any]
    targets: bool = False
    extra: int = 0
    autocast: torch.dtype | None = None
    thaws: bool = False
    alone: bool = False
    flat: bool = False

    def flattened(self) -> Way:
        """The same way with one sequence at a time, as ids [T]."""
        return replace(self, call=lambda ids: self.call(ids[0]), alone=True, flat=True)


def ways_of(model: nn.Module, logits: Callable[..., Any] | str | None) -> list[Way]:
    """What to try, the likeliest first: what the user named alone, else `forward_logits`, `logits`, then the model."""
    if isinstance(logits, str):
        if not callable(getattr(model, logits, None)):
            raise ModelError(f"the model has no method {logits!r} that could return logits")
        return [Way(getattr(model, logits))]
    if logits is not None:
        return [Way(logits)]
    methods = [getattr(model, name, None) for name in ("forward_logits", "logits")]
    return [*(Way(m) for m in methods if callable(m) and not isinstance(m, nn.Module)), *_ways_of_forward(model)]


def _ways_of_forward(model: nn.Module) -> list[Way]:
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return [Way(model)]
    given = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    by_position = [p for p in given if p.kind is not p.KEYWORD_ONLY]
    told = tuple(p.name for p in given if p.default is p.empty and p.name in KNOWN)
    needed = [p for p in given if p.default is p.empty and p.name not in told]
    names = [p.name for p in given]
    gathers = {p.kind for p in parameters if p not in given}
    any_name = IDS[:1] if inspect.Parameter.VAR_KEYWORD in gathers else ()
    first = () if by_position or inspect.Parameter.VAR_POSITIONAL in gathers else _first_of(IDS, names) or any_name
    target = _first_of(TARGETS, names) or tuple(p.name for p in needed[1:2] if not NO_TARGET.search(p.name))
    alone = Way(partial(_called, model, first, (), told))
    taught = Way(partial(_called, model, first, target, told), targets=True)
    ways = [alone] if len(needed) <= 1 else []
    ways += [taught] if target else []
    if names[:1] and names[0] in BATCHES:
        both = Way(lambda ids: model({name: ids for name in (*IDS, *TARGETS)}), targets=True)
        ways += [both, Way(lambda ids: model((ids, ids)), targets=True)]
    return ways or [alone]


def _first_of(known: tuple[str, ...], names: list[str]) -> tuple[str, ...]:
    return tuple(name for name in known if name in names)[:1]


def _called(
    model: nn.Module, ids_name: tuple[str, ...], target_name: tuple[str, ...], told: tuple[str, ...], ids: Tensor
) -> Any:
    by_name = dict.fromkeys((*ids_name, *target_name), ids) | {name: KNOWN[name](ids) for name in told}
    return model(**by_name) if ids_name else model(ids, **by_name)


class Enough(BaseException):
    """The logits passed by: nothing after them is of interest. No Exception, so that a model's `except` lets it pass."""


class Watch(TorchFunctionMode):
    """Sees the logits on their way into a loss, and every table that the ids [B, T] are looked up in.

    stops: raise `Enough` as soon as a single loss has received the logits. rows: of the smallest table so far.
    Raises CurvatureError before a lookup would leave its table (on a GPU that would end the process).
    """

    def __init__(self, ids: Tensor, *, stops: bool = False) -> None:
        super().__init__()
        self.rows: int | None = None
        self._ids = ids
        self._stops = stops
        self._losses: list[tuple[Tensor, Tensor]] = []  # what a loss received: scores and targets
        self._softmaxes: list[tuple[Tensor, Tensor]] = []  # result and input of every log_softmax
        self._copies = [ids]  # held, so that no address is used again

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name: str = getattr(func, "__name__", "")
        if name in ("embedding", "__getitem__", "index_select"):
            self._guard([*args, *kwargs.values()])
        if name in ("cross_entropy", "nll_loss", "gather", "__getitem__"):
            self._loss(name, args, kwargs)
        result = func(*args, **kwargs)
        if name == "log_softmax":
            self._softmaxes.append((result, args[0] if args else kwargs["input"]))
        if name in COPIES and isinstance(result, Tensor) and any(map(self._is_ids, _members(args))):
            self._copies.append(result)
        return result

    def logits(self, extra: int = 0) -> Tensor | None:
        """[B, T - extra, V]: what one loss received, or several that share the positions out; None if none did."""
        for scores, targets in self._losses:
            if (found := self._shaped(scores, targets, extra)) is not None:
                return found
        if len(self._losses) > 1 and all(scores.dim() == 2 for scores, _ in self._losses):
            scores, targets = (torch.cat(parts) for parts in zip(*self._losses, strict=True))
            return self._shaped(scores, targets, extra)
        return None

    def _loss(self, name: str, args: Any, kwargs: Any) -> None:
        scores = args[0] if args else kwargs.get("input")
        targets = kwargs.get("target", kwargs.get("index", args[-1] if name == "gather" else (*args, None, None)[1]))
        source = self._before_softmax(scores)
        if name == "gather" and isinstance(targets, Tensor):
            targets = targets.squeeze(-1)
        if name == "__getitem__":  # log_probabilities[range, targets]
            targets = targets[-1] if isinstance(targets, tuple) else None
        if name in ("gather", "__getitem__") and source is None:
            return
        if isinstance(scores, Tensor) and isinstance(targets, Tensor):
            self._losses.append((scores if source is None else source, targets))
            if self._stops and self._shaped(*self._losses[-1], extra=0) is not None:
                raise Enough

    def _before_softmax(self, scores: Any) -> Tensor | None:
        """What the log_softmax that made `scores` was given, of their shape: logits, of which more is known."""
        for result, source in self._softmaxes:
            if not isinstance(scores, Tensor) or is_transformed(result) or is_transformed(scores):
                continue
            if result.data_ptr() == scores.data_ptr():
                if source.numel() == scores.numel() and source.shape[-1] == scores.shape[-1]:
                    return source.reshape(scores.shape)
                return source.mT if source.dim() > 1 and source.mT.shape == scores.shape else scores
        return None

    def _shaped(self, scores: Tensor, targets: Tensor, extra: int) -> Tensor | None:
        """Scores as [B, T - extra, V] if they have one row a position and the targets are these ids."""
        B, T = self._ids.shape
        wanted = self._ids[:, extra:]
        if not scores.is_floating_point() or targets.is_floating_point() or targets.numel() != wanted.numel():
            return None
        if scores.dim() == 3 and scores.shape[:2] != wanted.shape:
            scores = scores.mT  # [B, V, T], as cross_entropy wants it
        if scores.shape[:-1] not in (wanted.shape, (wanted.numel(),)):
            return None
        there, here = targets.flatten(), wanted.flatten()
        if not bool(((there == here) | (there < 0)).all()):
            return None
        return scores.reshape(B, T - extra, scores.shape[-1])

    def _is_ids(self, value: Any) -> bool:
        if not isinstance(value, Tensor) or value.is_floating_point() or is_transformed(value):
            return False
        return any(value.untyped_storage().data_ptr() == known.untyped_storage().data_ptr() for known in self._copies)

    def _guard(self, operands: list[Any]) -> None:
        index = next((o for o in operands if self._is_ids(o)), None)
        table = next((o for o in operands if isinstance(o, Tensor) and o.is_floating_point()), None)
        if index is None or table is None or table.dim() == 0 or index.numel() == 0:
            return
        self.rows = min(self.rows or table.shape[0], table.shape[0])
        refuse_beyond(int(index.max()), self.rows)


class Thawed(TorchFunctionMode):
    """Every tensor made under torch.inference_mode is copied before a function takes it, for autograd refuses it."""

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}  # the original is held: its id stays its own

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*self._thawed(args), **{name: self._thawed(value) for name, value in (kwargs or {}).items()})

    def _thawed(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
            return type(value)(map(self._thawed, value))
        if not isinstance(value, Tensor) or not value.is_inference():
            return value
        if id(value) not in self._copies:
            self._copies[id(value)] = value, value.clone()
        return self._copies[id(value)][1]


def is_transformed(value: Any) -> bool:
    """Whether a tensor is one of torch.func's (vmap, grad, jvp), which lies nowhere itself and ends with the call."""
    return isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value)


def refuse_beyond(highest: int, rows: int) -> None:
    """CurvatureError for a token that a table of `rows` pieces does not have."""
    if highest >= rows:
        raise CurvatureError(
            f"token {highest} lies outside the model's vocabulary of {rows}: wrong tokenizer or shard?"
        )


def _members(args: Any) -> Iterator[Any]:
    for value in args:
        if isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value
