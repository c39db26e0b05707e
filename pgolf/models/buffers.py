"""Which buffers of a checkpoint its class makes by itself, bit for bit, so that they need not be stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from pgolf.models import blueprint
from pgolf.models.checkpoint import Checkpoint, to_bytes


def compared(found: Checkpoint, fresh: nn.Module, again: Callable[[], nn.Module]) -> Checkpoint:
    """The checkpoint, with the buffers in `rebuilt` that a module just made, without any weights, has bit for bit.

    again: makes another one in another state of the random generators: what differs then was drawn, and the next module
    that is made will have drawn something else. Called only where there is something to compare.
    """
    same = _same(found, fresh, frozenset(found.buffers or ()))
    return replace(found, rebuilt=_same(found, again(), same) if same else same)


def _same(found: Checkpoint, module: nn.Module, names: frozenset[str]) -> frozenset[str]:
    state, theirs, plan = found.state_dict(), module.state_dict(), blueprint.of(module)
    there = [name for name in names if name in state and name in plan.full]
    return frozenset(name for name in there if _equal(state[name], theirs[plan.full[name]]))


def _equal(a: Tensor, b: Tensor) -> bool:
    if b.is_meta or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return to_bytes(a) == to_bytes(b.detach().cpu())
