"""Which of what a model returned are its logits: by their shape, and by the width of the table that the ids were looked up in."""

from __future__ import annotations

from collections.abc import ValuesView
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor

from pgolf.errors import ModelError


class NoLogits(ModelError):
    """The model ran, and nothing that it gave can be logits."""


def logits_in(out: Any, ids: Tensor, rows: int | None) -> Tensor | None:
    """The logits [B, T, V] in what a model returned: a tensor, a tuple, a dict or an object with `.logits`.

    rows: of the table that the ids were looked up in. Of several that could be logits, the one as wide is taken, for
    hidden states have their shape too; under another name than `.logits` only that one.
    """
    likely = _of_shape(_tensors_in(out), ids)
    fitting = [m for m in likely or _of_shape(_tensors_within(out), ids) if m.shape[-1] == rows]
    return next(iter([*fitting, *likely]), None)


def _of_shape(tensors: list[Tensor], ids: Tensor) -> list[Tensor]:
    """Those with one row a position, as [B, T, V]."""
    wide = [m.view(*ids.shape, -1) if m.dim() == 2 and m.shape[0] == ids.numel() else m for m in tensors]
    return [m for m in wide if m.dim() == 3 and m.shape[:2] == ids.shape and m.is_floating_point()]


def are_probabilities(found: Tensor) -> bool:
    """Whether rows are above zero and sum to one."""
    sums = found.detach().float().sum(-1)
    return bool((found >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2)


def _tensors_within(out: Any, depth: int = 4) -> list[Tensor]:
    """All tensors in nested dicts, lists, tuples and dataclasses."""
    if isinstance(out, Tensor):
        return [out]
    values = vars(out) if is_dataclass(out) and not isinstance(out, type) else out
    values = values.values() if isinstance(values, dict) else values
    members = values if depth and isinstance(values, (list, tuple, ValuesView)) else ()
    return [tensor for member in members for tensor in _tensors_within(member, depth - 1)]


def _tensors_in(out: Any) -> list[Tensor]:
    inside = out.get("logits", out) if isinstance(out, dict) else getattr(out, "logits", out)
    return [m for m in (inside if isinstance(inside, (tuple, list)) else [inside]) if isinstance(m, Tensor)]


def refused(out: Any, ids: Tensor) -> NoLogits:
    """What to say of a result in which there are no logits."""
    members = _tensors_in(out)
    got = ", ".join(str(list(m.shape)) for m in members) or type(out).__name__
    hint = "only a loss" if got == "[]" else "only the last position" if f"[{ids.shape[0]}, 1, " in got else "no logits"
    want = f"[{ids.shape[0]}, {ids.shape[1]}, vocabulary]"
    return NoLogits(f"the model returns {hint} (shape {got}, wanted {want}): name a method that does, logits=...")
