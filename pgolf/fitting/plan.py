"""Which tensor is quantized how: defaults, `--set PATTERN=...`, and what stays in full precision and why.

What will surprise you:
* Later patterns win over earlier ones, field by field; a pattern that matches nothing is an error, not a shrug.
* A setting that the user fixed is never searched: with k (or step) fixed, a tensor keeps its step sizes whatever the
  budget. Bits alone fix the integer range, and the step inside it is still searched.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import torch
from torch import Tensor

from pgolf.errors import UsageError
from pgolf.models.checkpoint import to_bytes
from pgolf.packer.coder.general import shuffled
from pgolf.quant import METHODS, Settings

KEEP = "keep"  # the method that changes no value
SMALLEST = 2048  # weights; below it scales and tables would cost what quantization saves
CODE_LIKE = 1 << 12  # larger integers are no quantizer's codes
ZLIB_LEVEL = 1  # a quick look is enough to tell tables from codes
DICTIONARY_GAIN = 1.1  # codes without any pattern: zlib stays a little above their entropy
LARGEST = 2.0**120  # weights beyond leave float32 no room for steps and sums
NARROWEST = 8  # rows or columns of a matrix worth quantizing
MATRIX_DEFAULT = {"bits": 6, "k": 12.85}  # the contest's usual settings (#1394)
EMBEDDING_DEFAULT = {"bits": 8, "k": 20.0}
_EMBEDDINGS = ("emb", "wte", "lm_head", "output_head")
_NUMBERS = {"k": float, "percentile": float, "step": float, "lam": float, "damp": float, "block": int}
_CASTS = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True)
class TensorPlan:
    """settings: how to quantize, or None to keep. kept: why it is kept. cast: dtype its kept bytes are stored in.

    searched: the budget search may change its step size. integers: kept values are entropy coded as codes are.
    """

    settings: Settings | None
    kept: str = ""
    cast: str | None = None
    searched: bool = False
    integers: bool = False

    def at(self, step: float) -> Settings:
        """The settings at a position of the searched knob."""
        assert self.settings is not None
        return replace(self.settings, step=self.settings.step * step) if self.searched else self.settings

    @property
    def finest(self) -> float:
        """The smallest useful knob: below it the integer range would clip what it is meant to hold."""
        s = self.settings
        if s is None or s.method in {"auto", "quick"}:
            return 2.0**-16
        return 1.0 if s.method in {"rtn", "gptq-lite"} else 4.0 / (s.k or 12.85)


@dataclass(frozen=True)
class Rule:
    """One `--set`: a glob over tensor names and the fields that it fixes."""

    pattern: str
    fields: dict[str, Any]


def parse_rule(text: str) -> Rule:
    """'tok_emb.*=int8,k=20' -> Rule. Words: int2..int8, a method's name, keep, fp16, bf16, fp32, NAME=NUMBER."""
    pattern, equals, rest = text.partition("=")
    if not equals or not pattern or not rest:
        raise UsageError(f"--set {text!r}: write PATTERN=SETTING[,SETTING...], like 'tok_emb.*=int8,k=20'")
    fields: dict[str, Any] = {}
    for word in (w.strip() for w in rest.split(",")):
        fields |= _parse_word(word, text)
    return Rule(pattern, fields)


def _parse_word(word: str, text: str) -> dict[str, Any]:
    name, equals, value = word.partition("=")
    if name in _NUMBERS and equals:
        try:
            number = _NUMBERS[name](value)
        except ValueError:
            number = -1
        if not 0 < number < 1e9 or (name == "percentile" and number > 1):
            raise UsageError(f"--set {text!r}: {name} must be a positive number, not {value!r}")
        return {name: number}
    if word in METHODS:
        return {"method": word}
    if word == "keep":
        return {"keep": True}
    if word in _CASTS:
        return {"cast": _CASTS[word]}
    if word.startswith("int") and word[3:].isdecimal() and 2 <= int(word[3:]) <= 8:
        return {"bits": int(word[3:])}
    known = ", ".join(["int2..int8", "keep", *_CASTS, *METHODS, *(f"{n}=" for n in _NUMBERS)])
    raise UsageError(f"--set {text!r}: {word!r} is not a setting; known: {known}")


def make(
    tensors: Mapping[str, Tensor],
    *,
    method: str,
    rules: Sequence[Rule] = (),
    search: bool = False,
    base: Settings | None = None,
) -> dict[str, TensorPlan]:
    """A plan for every tensor. search: a budget will be searched for. base: settings that no rule speaks of.

    Raises UsageError for an unknown method and for patterns that match no tensor.
    """
    if method not in METHODS and method != KEEP:
        raise UsageError(f"unknown method {method!r}; known: {', '.join([*METHODS, KEEP])}")
    idle = [r.pattern for r in rules if not any(fnmatchcase(name, r.pattern) for name in tensors)]
    if idle:
        raise UsageError(f"--set {idle[0]!r} matches no tensor; names look like {', '.join(list(tensors)[:3])}")
    base = replace(base or Settings(), method=method)
    return {name: _plan(name, tensor, rules, search, base) for name, tensor in tensors.items()}


def _plan(name: str, tensor: Tensor, rules: Sequence[Rule], search: bool, base: Settings) -> TensorPlan:
    fields: dict[str, Any] = {}
    for rule in rules:
        if fnmatchcase(name, rule.pattern):
            fields |= rule.fields
    cast = fields.pop("cast", None)
    if fields.pop("keep", False) or cast:
        kept = TensorPlan(None, "asked for with --set", cast if cast and tensor.is_floating_point() else None)
        return replace(kept, integers=coded_better(tensor))
    if base.method == KEEP and "method" not in fields:
        return TensorPlan(None, "asked for with --method keep", integers=coded_better(tensor))
    if not tensor.is_floating_point():
        return TensorPlan(None, reason_to_keep(tensor), integers=coded_better(tensor))
    if reason := reason_to_keep(tensor):
        small = base.method == "auto" and tensor.is_floating_point() and tensor.element_size() > 2 and fits_half(tensor)
        return TensorPlan(None, reason, "float16" if small else None)
    default = EMBEDDING_DEFAULT if any(word in name for word in _EMBEDDINGS) else MATRIX_DEFAULT
    bits = fields.get("bits", 8 if search else default["bits"])
    k = fields.get("k", default["k"] * ((1 << (bits - 1)) - 1) / ((1 << (default["bits"] - 1)) - 1))  # same step size
    settings = replace(base, **{**fields, "bits": bits, "k": k})
    return TensorPlan(settings, searched=search and not {"k", "step"} & fields.keys())


def reason_to_keep(tensor: Tensor) -> str:
    """Why a tensor is not worth (or not able) to be quantized; "" if it is."""
    if not tensor.is_floating_point():
        return "not floating point"
    shape = matrix_shape(tuple(tensor.shape))
    if shape is None:
        return "a vector" if tensor.dim() == 1 else "a scalar" if tensor.dim() == 0 else "not a matrix"
    if tensor.numel() < SMALLEST:
        return f"small ({tensor.numel()} weights)"
    if min(shape[1:]) < NARROWEST:
        return "narrow"
    wide = torch.finfo(tensor.dtype).max > LARGEST and float(tensor.detach().abs().max()) > LARGEST
    return "beyond float32's range" if wide else ""


def coded_better(tensor: Tensor) -> bool:
    """Whether the values of a tensor are integers that cost fewer bits one by one than a dictionary coder finds.

    Codes of a quantizer do; masks, position tables and permutations do not.
    """
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool or tensor.numel() < SMALLEST:
        return False
    low, high = int(tensor.min()), int(tensor.max())
    if low < -(1 << 31) or high >= 1 << 31 or max(-low, high) >= CODE_LIKE:
        return False
    counts = torch.bincount((tensor.reshape(-1).long() - low), minlength=1).double()
    share = counts[counts > 0] / tensor.numel()
    entropy_bytes = -float((share * share.log2()).sum()) * tensor.numel() / 8
    raw = to_bytes(tensor)
    forms = (raw, shuffled(raw, tensor.element_size()))
    return entropy_bytes < DICTIONARY_GAIN * min(len(zlib.compress(form, ZLIB_LEVEL)) for form in forms)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(slices, rows, columns): a matrix, a 3-D bank as a stack of matrices, a convolution [O, I, k...] as [O, I·k]."""
    if len(shape) < 2 or 0 in shape:
        return None
    if len(shape) == 3 and min(shape[1:]) >= NARROWEST:
        return shape[0], shape[1], shape[2]
    return 1, shape[0], prod(shape[1:])


def fits_half(tensor: Tensor) -> bool:
    """Whether float16 holds every value to its usual 11 bits: no overflow, nothing but zeros below its normal range."""
    size = tensor.detach().abs()
    return not bool(((size > 65504) | ((size > 0) & (size < 2.0**-14))).any())
