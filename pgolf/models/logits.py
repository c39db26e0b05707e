"""Run a language model that pgolf knows nothing about: find its logits, and leave it as it was found."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from pgolf.errors import CurvatureError, ModelError, PgolfError, is_out_of_memory
from pgolf.models.calls import Enough, Thawed, Watch, Way, refuse_beyond, ways_of
from pgolf.models.products import by_onednn
from pgolf.models.restored import restored_buffers
from pgolf.models.returned import NoLogits, are_probabilities, logits_in, refused

# That a length may have to be of: of 16 in some kernels, of 128 in others; of 24, or 48 and nothing else, in some trainers.
MULTIPLES = tuple(sorted(k << n for n in range(11) for k in (1, 3) if k << n <= 1024))
MIXED = re.compile(r"same dtype|scalar type|should be the same")  # what torch says of operands of two dtypes
FROZEN = "Inference tensors cannot be saved for backward"


def original(model: nn.Module) -> nn.Module:
    """The module inside torch.compile and (distributed) data-parallel wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies; the CPU for a model without any."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def logits_of(model: nn.Module, logits: Callable[..., Any] | str | None = None) -> Logits:
    """A checked function ids int64 [B, T] -> logits [B, T, V].

    logits: a callable, or the name of a method; else `forward_logits`, `logits`, or the model itself, with ids as its
    targets too where it wants them or gives no logits without. A model that takes only certain lengths is given
    more tokens than asked for.
    Raises ModelError (what comes back cannot be logits) and CurvatureError (the model fails on these tokens).
    """
    return Logits(model, logits)


@dataclass(frozen=True)
class Form:
    """What was learned of a model: the way to call it, which multiple its lengths must be of, the rows of its table."""

    way: Way
    multiple: int = 1
    rows: int | None = None


class Logits:
    """See `logits_of`. How the model wants to be called is learned at the first call, by a pass over one sequence."""

    def __init__(self, model: nn.Module, logits: Callable[..., Any] | str | None = None) -> None:
        self.model = model
        self._ways = ways_of(model, logits)
        self._form: Form | None = None
        self._seen_together = False  # several sequences were run, or tried, at once
        self._lengths: set[int] = set()

    @property
    def multiple(self) -> int:
        """The model takes lengths that are multiples of this, as far as was seen; others are filled up."""
        return self._form.multiple if self._form else 1

    @property
    def alone(self) -> bool:
        """Whether the model takes one sequence at a time, as far as was seen."""
        return self._form is not None and self._form.way.alone

    @property
    def vocabulary(self) -> int:
        """The rows of the table that the model looks ids up in, 1 where no such table was seen."""
        return (self._form.rows if self._form else None) or 1

    def __call__(self, ids: Tensor) -> Tensor:
        self._check(ids)
        ids = ids.contiguous()  # trainers take `targets.view(-1)` for granted
        form = self._form or self.learn(ids)
        if form.rows:
            refuse_beyond(int(ids.max()), form.rows)
        try:
            found = _run(form, ids)
        except PgolfError:
            raise
        except Exception as error:
            if is_out_of_memory(error) or self.learn(ids) == form:
                raise explained(error, ids) from error
            assert self._form is not None
            found = _run(self._form, ids)
        if form.rows and found.shape[-1] <= int(ids.max()):
            raise CurvatureError(
                f"the model returns logits for a vocabulary of {found.shape[-1]}, its table has {form.rows} rows: hidden states? "
                "name a method that returns logits, logits=..."
            )
        refuse_beyond(int(ids.max()), found.shape[-1])
        return found

    def unchecked(self, ids: Tensor) -> Callable[[Tensor], Tensor]:
        """The same function for ids like these that were checked before: it asks no tensor for its values.

        So torch.compile takes it whole, and a GPU is not waited for. A model whose logits pass by on their way into a
        loss, or that is filled up to other lengths, is watched at every call as ever.
        """
        self._check(ids)
        form = self._form or self.learn(ids)
        if form.way.targets or form.way.extra or form.way.thaws or form.way.alone or form.multiple > 1:
            return self

        def run(ids: Tensor) -> Tensor:
            mixed = torch.autocast(ids.device.type, form.way.autocast) if form.way.autocast else nullcontext()
            with mixed:
                out = form.way.call(ids)
            found = logits_in(out, ids, form.rows)
            if found is None:
                raise refused(out, ids)
            return found

        return run

    def prepare(self, ids: Tensor) -> Tensor:
        """`ids`, cut to a length that the model takes as it is. Call it before one that is traced: attempts leave traces."""
        self._check(ids)
        if ids.shape[1] not in self._lengths:
            self.learn(ids)
            self._lengths.add(ids.shape[1])
        return ids[:, : ids.shape[1] // self.multiple * self.multiple or None]

    def learn(self, ids: Tensor) -> Form:
        """Find out how the model is to be called with ids of this length."""
        sample = (
            ids[:1].contiguous() if ids.shape[1] > 1 else ids[:1].repeat(1, 2)
        )  # of one position, the last one is all
        failures: list[Exception] = []
        for way in [self._form.way] if self._form else self._ways:
            try:
                found = _learned(way, sample, self._form)
                if len(ids) > 1 and not self._seen_together:
                    found, self._seen_together = _of_rows(found, ids[:2].contiguous()), True
                self._form = found
            except PgolfError as error:
                if not isinstance(error, NoLogits):
                    raise
                failures.append(error)
            except Exception as error:
                if is_out_of_memory(error):
                    raise explained(error, ids) from error
                failures.append(error)
            else:
                return self._form
        if self._form is None and not isinstance(failures[0], NoLogits):
            for way in self._ways:
                self._form = _form_or_none(way.flattened(), sample)
                if self._form is not None:
                    return self._form
        raise _verdict(failures, ids)

    def _check(self, ids: Tensor) -> None:
        """What would crash an embedding (on a GPU with an assertion that ends the process) must not reach it."""
        if ids.dim() != 2 or ids.dtype != torch.int64 or ids.numel() == 0:
            raise CurvatureError(f"a batch must be int64 token ids [B, T], not {ids.dtype} {list(ids.shape)}")
        if (low := int(ids.min())) < 0:
            raise CurvatureError(f"token {low} lies outside the model's vocabulary: wrong tokenizer or shard?")


def _learned(way: Way, ids: Tensor, known: Form | None) -> Form:
    """The form in which `way` gives logits of ids [1, T]. Raises what the model raises, and NoLogits."""
    form = replace(known, way=way) if known else Form(way)
    try:
        return _remedied(form, ids)
    except PgolfError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        for length in sorted({_up(ids.shape[1], m) for m in MULTIPLES} - {ids.shape[1]}):
            longer = _remedied_or_none(form, _filled(ids, length))
            if longer is not None:
                return replace(longer, multiple=_multiple(longer, length, ids))
        raise


def _of_rows(form: Form, ids: Tensor) -> Form:
    """A form that gives logits of one sequence, for ids [2, T]: one after the other where they fail together."""
    try:
        _run(form, ids)
    except PgolfError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return replace(form, way=replace(form.way, alone=True))
    return form


def _form_or_none(way: Way, ids: Tensor) -> Form | None:
    try:
        return _learned(way, ids, None)
    except CurvatureError:  # a token beyond the table
        raise
    except Exception:
        return None


def _multiple(form: Form, length: int, ids: Tensor) -> int:
    """The smallest multiple that explains why T failed and `length` did not."""
    for multiple in MULTIPLES[1:]:
        if _up(ids.shape[1], multiple) >= length and length % multiple == 0:
            fits = _remedied_or_none(form, ids[:, :1].repeat(1, multiple))
            if fits is not None:
                return multiple
    return max(m for m in MULTIPLES if length % m == 0)


def _remedied_or_none(form: Form, ids: Tensor) -> Form | None:
    try:
        return _remedied(form, ids)
    except ModelError:
        return None
    except PgolfError:
        raise
    except Exception:
        return None


def _remedied(form: Form, ids: Tensor) -> Form:
    """The form with what its way lacked: a dtype to compute in, copies of frozen tensors, a column more."""
    try:
        return _observed(form, ids)
    except PgolfError:
        raise
    except Exception as error:
        way = _remedy(form.way, ids, error)
        if way is None:
            raise
        try:
            return _remedied(replace(form, way=way), ids)
        except Exception:
            raise error from None


def _remedy(way: Way, ids: Tensor, error: Exception) -> Way | None:
    if FROZEN in str(error) and not way.thaws:
        return replace(way, thaws=True)
    if MIXED.search(str(error)) and way.autocast is None:
        return replace(way, autocast=torch.bfloat16)
    return None


def _observed(form: Form, ids: Tensor) -> Form:
    """Run ids [1, T] and watch: the form that gives their logits."""
    way, watch = form.way, Watch(ids)
    out = _outcome(way, ids, watch)
    rows = min(filter(None, (form.rows, watch.rows)), default=None)
    returned = logits_in(out, ids, rows)
    if returned is not None and are_probabilities(returned):
        raise NoLogits("the model returns probabilities: name a method that gives what its softmax takes, logits=...")
    if way.extra == 0 and returned is None and watch.logits() is None and watch.logits(1) is not None:
        longer = _filled(ids, ids.shape[1] + 1)
        watch = Watch(longer)
        _outcome(way, longer, watch)
        way = replace(way, extra=1)
        if watch.logits(1) is None:
            raise refused(out, ids)
        return Form(way, form.multiple, rows)
    seen = watch.logits(way.extra)
    if returned is None and seen is None:
        raise refused(out, ids)
    return Form(replace(way, targets=seen is not None and (way.targets or returned is None)), form.multiple, rows)


def _run(form: Form, ids: Tensor) -> Tensor:
    """The logits [B, T, V] of ids in a known form."""
    way, length = form.way, ids.shape[1]
    if way.alone and len(ids) > 1:
        return torch.cat([_run(form, row) for row in torch.split(ids, 1)])
    full = _filled(ids, _up(length, form.multiple) + way.extra)
    watch = Watch(full, stops=way.extra == 0) if way.targets or way.extra else None
    out = _outcome(way, full, watch)
    found = watch.logits(way.extra) if watch else None
    if found is None:
        found = logits_in(out, full, form.rows)
    if found is None:
        raise refused(out, full)
    return found[:, :length]


def _outcome(way: Way, ids: Tensor, watch: Watch | None) -> Any:
    """What the model returns for ids, None where the watch saw enough."""
    with ExitStack() as stack:
        if way.autocast is not None:
            stack.enter_context(torch.autocast(ids.device.type, way.autocast))
        if way.thaws:
            stack.enter_context(Thawed())
        if watch is not None:
            stack.enter_context(watch)
        try:
            return way.call(ids)
        except Enough:
            return None
        except SystemExit as error:  # else pgolf would end with the model's exit code, and nothing done
            raise RuntimeError(f"it calls sys.exit({error.code if error.code is not None else ''})") from error


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _filled(ids: Tensor, length: int) -> Tensor:
    """ids [B, T] with copies of the last column behind them: a causal model's earlier logits do not change."""
    return torch.cat([ids, ids[:, -1:].expand(-1, length - ids.shape[1])], 1) if length > ids.shape[1] else ids


def _verdict(failures: list[Exception], ids: Tensor) -> PgolfError:
    """What to say where no way led to logits: the likeliest way's failure, and the model's own words last."""
    first, broken = failures[0], [e for e in failures if not isinstance(e, NoLogits)]
    if isinstance(first, NoLogits) and broken:
        return ModelError(f"{first}; given targets, it fails: {_reason(broken[0])}")
    return first if isinstance(first, NoLogits) else explained(first, ids)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")


def explained(error: Exception, ids: Tensor, *, backward: bool = False) -> PgolfError:
    """What to raise where a model's forward or backward pass failed on ids [B, T]."""
    reason = _reason(error)
    if is_out_of_memory(error) or isinstance(error, torch.OutOfMemoryError):
        return CurvatureError(
            f"out of memory on a batch of {ids.shape[0]} x {ids.shape[1]} tokens: use smaller batches"
        )
    if isinstance(error, TypeError) and "missing" in reason and "argument" in reason:
        return ModelError(
            f"the model wants more than token ids: name a method that returns logits, logits=... ({reason})"
        )
    if "Inference tensors do not track version counter" in reason:
        return CurvatureError(
            f"the model runs under torch.inference_mode by itself: take that off its forward ({reason})"
        )
    if FROZEN in reason:
        return CurvatureError(
            f"the model keeps tensors made under torch.inference_mode: evaluate it under no_grad instead, or build it "
            f"anew ({reason})"
        )
    if backward:
        return CurvatureError(f"the model's backward pass fails on {ids.shape[0]} x {ids.shape[1]} tokens: {reason}")
    return CurvatureError(
        f"the model fails on a batch of {ids.shape[0]} sequences of T = {ids.shape[1]} tokens: {reason}"
    )


_one_at_a_time = threading.RLock()  # modes, flags, the RNG state and the patch below are the process's, not a thread's


@contextmanager
def undisturbed(model: nn.Module, *, gradients: bool) -> Iterator[None]:
    """Eval mode, no compiled code, gradients on or off; afterwards modes, flags, buffers, RNG states and .grad are as before.

    What the model prints goes to stderr, for stdout is for data.
    One thread at a time: others wait. Raises CurvatureError for parameters that can have no gradient.
    """
    with _one_at_a_time, redirect_stdout(sys.stderr), _undisturbed(model, gradients):
        yield


@contextmanager
def _undisturbed(model: nn.Module, gradients: bool) -> Iterator[None]:
    frozen = [name for name, p in model.named_parameters() if gradients and p.is_inference()]
    if frozen:
        raise CurvatureError(
            f"parameter {frozen[0]!r} was made under torch.inference_mode and can have no gradient: build the model outside"
        )
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters() if p.is_floating_point()]
    device = device_of(model)
    cuda = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    with (
        torch.random.fork_rng(cuda),
        torch.inference_mode(False),
        restored_buffers(model),
        torch.set_grad_enabled(gradients),
        by_onednn(device),
        _as_written(),
        _unhooked(model),
    ):
        try:
            for module, _ in modes:  # not model.eval(): a class may merge adapters into its weights then
                module.training = False
            for parameter, _ in flags:
                parameter.requires_grad_(gradients)
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            for module, training in modes:
                module.training = training


@contextmanager
def _as_written() -> Iterator[None]:
    """Functions and submodules run as written: neither compiled nor by re-entrant checkpointing."""
    compiled = "torch._dynamo" in sys.modules  # where nothing is compiled, dynamo is not imported
    outside = vars(CheckpointFunction).get("apply")
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        CheckpointFunction.apply = staticmethod(lambda function, preserve, *args: function(*args))  # type: ignore[method-assign]
        try:
            yield
        finally:
            if outside is None:
                del CheckpointFunction.apply
            else:
                CheckpointFunction.apply = outside  # type: ignore[method-assign]


@contextmanager
def _unhooked(model: nn.Module) -> Iterator[None]:
    """Gradients are the loss's own: what trainers hang into the backward pass (masks, scales, clipping) is not called."""
    hooks = [p._backward_hooks for p in model.parameters() if p._backward_hooks]
    hooks += [found for m in model.modules() for found in (m._backward_hooks, m._backward_pre_hooks) if found]
    saved = [(each, dict(each)) for each in hooks]
    for each in hooks:
        each.clear()
    try:
        yield
    finally:
        for each, entries in saved:
            each.update(entries)


def first_bad_module(model: nn.Module, run: Callable[[Tensor], Tensor], ids: Tensor) -> str:
    """The name of the first module whose output is NaN or infinite, found by running `ids` once more; '' if none is."""
    bad: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            values = out if isinstance(out, (tuple, list)) else [out]
            if any(isinstance(v, Tensor) and v.is_floating_point() and not v.isfinite().all() for v in values):
                bad.append(name or type(module).__name__)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            run(ids)
    finally:
        for handle in handles:
            handle.remove()
    return bad[0] if bad else ""
