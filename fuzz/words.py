"""Strings that people type: sizes, `--set` of pack and of train, `--qat`, `--methods`."""

from __future__ import annotations

from typing import Any

SIZES = [b"16MB", b"15.3 MiB", b"16_000_000", b"500kB"]
RULES = [
    b"tok_emb.*=int8,k=20",
    b"*=keep",
    b"a.*.b=gptq,int5,damp=0.1,block=64",
    b"x=fp16",
    b"[ab]?=percentile=.999",
    b"*w*=auto,trellis=32,unbias=.3,two_sided=no",
]
QAT = [b"int6,k=12.85,start=0.85,rounding=ste", b"auto,bits=3,rounding=noise,recalibrate=0.05,rate=0.1", b"gptq,int5"]
METHODS = [b"auto,gptq:int6,k=12.85,rtn:int8", b"contest,auto:trellis=8,two_sided=1", b"sdclip:int5,step=0.5,quick"]
SETTINGS = [b"minutes=1,dim=32,heads=2,kv_heads=1,rope_dims=8", b"steps=12", b"train.optim.matrix_lr=0.02"]


def read_size(text: str) -> Any:
    """Bytes of "16MB"."""
    from pgolf.common.sizes import parse_size

    return parse_size(text)


def read_rule(text: str) -> Any:
    """The plan that a `--set` makes for a few tensors."""
    import torch

    from pgolf.fitting import plan

    tensors = {
        "tok_emb.weight": torch.ones(64, 48),
        "a.w.b": torch.ones(8, 300),
        "x": torch.ones(3),
        "ab": torch.ones(70, 70),
    }
    return plan.make(tensors, method="auto", rules=[plan.parse_rule(text)], search=True)


def read_qat(text: str) -> Any:
    """What `--qat` and `--qat-set` make of a model."""
    import torch

    from pgolf.quant.curvature.store import Curvature
    from pgolf.train.qat.hooks import QAT as Hooks
    from pgolf.train.qat.settings import parse_options

    hooks = Hooks(torch.nn.Linear(48, 64), curvature=Curvature(), **vars(parse_options(text)))
    try:
        return hooks.report().headline
    finally:
        hooks.remove()


def read_methods(text: str) -> Any:
    """The points of a sweep, and how each is packed."""
    from pgolf.sweep.points import points_of

    return [str(point.how()) + point.key for point in points_of(text, [5000])]


def read_settings(text: str) -> Any:
    """The recipe that `--set`s of train make."""
    from pgolf.train.loop.recipes import RECIPES, override

    return override(RECIPES["tiny"], text.split(","))
