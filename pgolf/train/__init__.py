"""Training: a compact GPT, its loop, and QAT hooks for anybody's.

    qat = pgolf.train.QAT(model, "int6", k=12.85, start=0.85)
    for step in range(steps):
        qat.step(step / steps)  # before the forward pass
        ...
    qat.remove()

Names are loaded when they are first used: importing pgolf.train imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgolf.train.qat.hooks import QAT
    from pgolf.train.qat.settings import QATSettings

__all__ = ["QAT", "QATSettings"]
_HOMES = {"QAT": "qat.hooks", "QATSettings": "qat.settings"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pgolf.train' has no attribute {name!r}")
    return getattr(import_module(f"pgolf.train.{_HOMES[name]}"), name)
