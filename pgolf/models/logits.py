"""Run a language model that pgolf knows nothing about: find its logits, and leave it as it was found.

What will surprise you:
* A trainer's `forward(ids, targets)` often returns a loss, or only the last position's logits. `forward_logits`,
  `logits` and the model itself are looked for in this order, and what comes back is checked, not believed.
* Checkpointed blocks keep their activations: re-entrant checkpointing would forbid to ask for chosen gradients.
* The original module is run, never the compiled one: inside a compiled graph no use of a weight can be seen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from pgolf.errors import CurvatureError, ModelError, PgolfError


@dataclass(frozen=True)
class Logits:
    """A checked function ids int64 [B, T] -> logits [B, T, V] of any float type, on the ids' device.

    model: whose logits they are, so that its device and mode need not be told apart from them.
    Raises ModelError (what comes back cannot be logits) and CurvatureError (the model fails on these tokens).
    """

    model: nn.Module
    call: Callable[..., Any]

    def __call__(self, ids: Tensor) -> Tensor:
        _check_ids(self.model, ids)
        try:
            out = self.call(ids)
        except PgolfError:
            raise
        except Exception as error:
            raise _explained(error, ids) from error
        found = _checked(out, ids)
        if int(ids.max()) >= found.shape[-1]:
            high, width = int(ids.max()), found.shape[-1]
            raise CurvatureError(
                f"token {high} lies outside the model's vocabulary of {width}: wrong tokenizer or shard?"
            )
        return found


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
    """The model's logits. `logits`: a callable, or the name of a method; else `forward_logits`, `logits`, or the model itself.

    Raises ModelError where the model has no such method.
    """
    return Logits(model, _find(model, logits))


def _find(model: nn.Module, logits: Callable[..., Any] | str | None) -> Callable[..., Any]:
    if isinstance(logits, str):
        if not callable(getattr(model, logits, None)):
            raise ModelError(f"the model has no method {logits!r} that could return logits")
        return getattr(model, logits)  # type: ignore[no-any-return]
    if logits is not None:
        return logits
    for name in ("forward_logits", "logits"):
        method = getattr(model, name, None)
        if callable(method) and not isinstance(method, nn.Module):
            return method  # type: ignore[no-any-return]
    return model


def _check_ids(model: nn.Module, ids: Tensor) -> None:
    """What would crash an embedding (on a GPU with an assertion that ends the process) must not reach it."""
    if ids.dim() != 2 or ids.dtype != torch.int64 or ids.numel() == 0:
        raise CurvatureError(f"a batch must be int64 token ids [B, T], not {ids.dtype} {list(ids.shape)}")
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    rows = max(tables or [p.shape[0] for p in model.parameters() if p.dim() > 1], default=0)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (rows and high >= rows):
        wrong = low if low < 0 else high
        raise CurvatureError(f"token {wrong} lies outside the model's vocabulary of {rows}: wrong tokenizer or shard?")


def _explained(error: Exception, ids: Tensor) -> PgolfError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if isinstance(error, TypeError) and "missing" in reason and "argument" in reason:
        return ModelError(
            f"the model wants more than token ids ({reason}): name a method that returns logits, logits=..."
        )
    if isinstance(error, torch.OutOfMemoryError):
        return CurvatureError(
            f"out of memory on a batch of {ids.shape[0]} x {ids.shape[1]} tokens: use smaller batches"
        )
    return CurvatureError(
        f"the model fails on a batch of {ids.shape[0]} sequences of T = {ids.shape[1]} tokens ({reason}): "
        f"is T longer than it can take, or the highest token, {int(ids.max())}, unknown to it?"
    )


def _checked(out: Any, ids: Tensor) -> Tensor:
    """The logits [B, T, V] in what a model returned: a tensor, a tuple, a dict or an object with `.logits`."""
    inside = out.get("logits", out) if isinstance(out, dict) else getattr(out, "logits", out)
    members = [m for m in (inside if isinstance(inside, (tuple, list)) else [inside]) if isinstance(m, Tensor)]
    for member in members:
        if member.dim() == 3 and member.shape[:2] == ids.shape and member.is_floating_point():
            return member
        if member.dim() == 2 and member.shape[0] == ids.numel() and member.is_floating_point():
            return member.view(*ids.shape, -1)
    got = ", ".join(str(list(m.shape)) for m in members) or type(out).__name__
    hint = "only a loss" if got == "[]" else "only the last position" if f"[{ids.shape[0]}, 1, " in got else "no logits"
    want = f"[{ids.shape[0]}, {ids.shape[1]}, vocabulary]"
    raise ModelError(f"the model returns {hint} (shape {got}, wanted {want}): name a method that does, logits=...")


@contextmanager
def undisturbed(model: nn.Module, *, gradients: bool) -> Iterator[None]:
    """Eval mode, no compiled code, gradients on or off; afterwards modes, flags, RNG states and .grad are as before."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters() if p.is_floating_point()]
    cuda = list(range(torch.cuda.device_count())) if device_of(model).type == "cuda" else []
    with torch.random.fork_rng(cuda), torch.inference_mode(False), torch.set_grad_enabled(gradients), _as_written():
        try:
            model.eval()
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
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        CheckpointFunction.apply = staticmethod(lambda function, preserve, *args: function(*args))  # type: ignore[method-assign]
        try:
            yield
        finally:
            del CheckpointFunction.apply


def first_bad_module(model: nn.Module, run: Logits, ids: Tensor) -> str:
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
