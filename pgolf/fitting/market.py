"""Whether a tensor is worth codes: its bytes against the loss it costs, at the price that all weights of a model pay.

At water level c a weight costs c²/24 nats, and a bit more would make that a quarter: λ = ln 2·c²/12 nats for a bit. Of
each tensor the form with the least nats + λ·bits is taken, codes or kept numbers, cast or not. As c grows, whatever
replaces another form takes fewer bits, so the bytes still fall with the knob.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pgolf.models.checkpoint import dtype_name, to_bytes
from pgolf.packer.coder.general import shuffled
from pgolf.quant.curvature.loss import loss_rise
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.methods.auto import UNIT
from pgolf.quant.slices import matrix_shape

CASTS = ("float16", "bfloat16")
SAMPLE = 1 << 14  # numbers whose bytes tell those of all
ZLIB_LEVEL = 9
ZLIB_OWN = 8  # bytes of zlib's frame, which a section has once
PLANE_BITS = 100.0  # of a plane's record in the header, once that is compressed
LOSS_BITS = 1 / (2 * math.log(2))  # of a coded weight: c²/24 nats at the price of a bit


@dataclass(frozen=True)
class Form:
    """A tensor as it may be kept. cast: the dtype, None for its own. bits: about what it takes. rise: nats a token."""

    cast: str | None
    bits: float
    rise: float


@dataclass(frozen=True)
class Stall:
    """What the market knows of a tensor before the price: its kept forms, its weights, its planes, and the rise of the
    loss if all of it were zero."""

    forms: Sequence[Form]
    weights: int
    planes: int
    whole: float

    def best(self, code_bits: float, step: float) -> Form | None:
        """The kept form to take at a step of `auto`, where codes would take `code_bits`; None: take the codes."""
        level = UNIT * step
        price = math.log(2) * level**2 / 12
        codes = min(self.weights * level**2 / 24, self.whole) + price * (code_bits + PLANE_BITS * self.planes)
        found = min(self.forms, key=lambda form: form.rise + price * form.bits)
        return found if found.rise + price * found.bits < codes else None


def surely_coded(tensor: Tensor, code_bits: float, least: float) -> bool:
    """Whether codes of at most so many bits win against any kept form of at least `least`, whatever that loses."""
    shape = matrix_shape(tuple(tensor.shape))
    return shape is not None and code_bits + LOSS_BITS * tensor.numel() + PLANE_BITS * shape[0] <= least


def least_bits(tensor: Tensor) -> float:
    """About the bits of a tensor's cheapest kept form."""
    return min(_bits(made) for _, made in _casts(tensor))


def _casts(tensor: Tensor) -> Iterator[tuple[str | None, Tensor]]:
    """The tensor as it is and in each dtype that takes fewer bytes or other values and holds them all."""
    yield None, tensor.detach()
    for cast in CASTS:
        made = tensor.detach().to(getattr(torch, cast))
        if dtype_name(tensor.dtype) != cast and tensor.element_size() > 1 and bool(torch.isfinite(made).all()):
            yield cast, made


def stall_of(tensor: Tensor, known: Sequence[MatrixCurvature]) -> Stall:
    """A tensor's stall. known: the curvature of each of its slices."""
    shape = matrix_shape(tuple(tensor.shape))
    assert shape is not None
    exact = tensor.detach().float()
    forms = tuple(
        Form(cast, _bits(made), _rise((made.float() - exact).reshape(shape), known)) for cast, made in _casts(tensor)
    )
    return Stall(forms, tensor.numel(), shape[0], _rise(exact.reshape(shape), known))


def _rise(errors: Tensor, known: Sequence[MatrixCurvature]) -> float:
    return sum(loss_rise(error, curvature) for error, curvature in zip(errors, known, strict=True))


def _bits(tensor: Tensor) -> float:
    """About the bits of a kept tensor, among others of its kind, from a run of it."""
    some = tensor.detach().reshape(-1)[:SAMPLE]
    raw = to_bytes(some)
    least = min(len(zlib.compress(form, ZLIB_LEVEL)) for form in (raw, shuffled(raw, some.element_size())))
    return 8.0 * max(min(least - ZLIB_OWN, len(raw)), 0) * tensor.numel() / max(some.numel(), 1)
