"""Which tensor is quantized how: defaults, `--set PATTERN=...`, and what stays in full precision and why."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgolf.common import extras, grammar
from pgolf.errors import UsageError
from pgolf.models.checkpoint import to_bytes
from pgolf.packer.coder.general import shuffled
from pgolf.quant import METHODS, Settings
from pgolf.quant.slices import matrix_shape

KEEP = "keep"  # the method that changes no value
KEPT_BY_RULE, KEPT_BY_METHOD = "asked for with --set", "asked for with --method keep"
# Of a tensor whose curvature is not known, below which nobody can say whether its error is worth the bytes saved:
UNPRICED_WEIGHTS = 2048
UNPRICED_SIDE = 8
EVERYTHING = "*"  # a rule that speaks of no tensor in particular
LARGEST = 2.0**120  # weights beyond leave float32 no room for steps and sums
LEAST = 2.0**-110  # likewise, where no weight reaches it: steps and squares fall below what float32 tells from 0
WITHOUT_ARITHMETIC = {torch.uint16, torch.uint32, torch.uint64}  # of torch's own: no minimum, no comparison
CODE_LIKE = 1 << 12  # larger integers are no quantizer's codes
ZLIB_LEVEL = 1  # a quick look is enough to tell tables from codes
DICTIONARY_GAIN = 1.1  # codes without any pattern: zlib stays a little above their entropy
_EMBEDDINGS = ("emb", "wte", "lm_head", "output_head")
_CASTS = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
_WORDS: dict[str, dict[str, grammar.Value]] = {
    **{f"int{bits}": {"bits": bits} for bits in range(2, 9)},
    "keep": {"keep": True},
    **{word: {"cast": dtype} for word, dtype in _CASTS.items()},
}
# The method and its integer range are words; nobody says None, for leaving a setting out does.
NAMES = {n: replace(k, optional=False) for n, k in grammar.kinds(Settings).items() if n not in {"method", "bits"}}


class Grid(NamedTuple):
    """What no rule speaks of: bits, and k for that many."""

    bits: int
    k: float


MATRIX_DEFAULT = Grid(6, 12.85)  # the contest's usual settings (#1394)
EMBEDDING_DEFAULT = Grid(8, 20.0)


@dataclass(frozen=True)
class TensorPlan:
    """settings: how to quantize, or None to keep. kept: why it is kept. cast: dtype its kept bytes are stored in.

    searched: the budget search may change its step size. integers: kept values are entropy coded as codes are.
    market: it may be kept or cast after all, where bytes and loss together say so: see market.py.
    unread: settings that were asked for and that its method does not read. asked: a rule of its own wants it quantized.
    """

    settings: Settings | None
    kept: str = ""
    cast: str | None = None
    searched: bool = False
    integers: bool = False
    market: bool = False
    unread: tuple[str, ...] = ()
    asked: bool = False

    @property
    def fixed(self) -> bool:
        """Whether a rule of its own says its step."""
        return self.asked and not self.searched

    def at(self, step: float) -> Settings:
        """The settings at a position of the searched knob."""
        assert self.settings is not None
        return replace(self.settings, step=self.settings.step * step) if self.searched else self.settings

    @property
    def finest(self) -> float:
        """The smallest useful knob: below it the integer range would clip what it is meant to hold."""
        s = self.settings
        if s is None or "bits" not in (reads := METHODS[s.method].reads):
            return 2.0**-16
        return 4.0 / (s.k or 12.85) if "k" in reads else 1.0


@dataclass(frozen=True)
class Rule:
    """One `--set`: a glob over tensor names and the fields that it fixes. general: it is a method's, of all that is worth it."""

    pattern: str
    fields: dict[str, Any]
    general: bool = False

    @property
    def keeps(self) -> bool:
        """Whether it wants tensors kept, cast or not."""
        return not self.fields.keys().isdisjoint({"keep", "cast"})


def parse_rule(text: str, method: str | None = None) -> Rule:
    """'tok_emb.*=int8,k=20' -> Rule. Words: int2..int8, a method's name, keep, fp16, bf16, fp32, NAME=VALUE.

    method: whose own settings the rule may speak of besides those of Settings, where it names no other.
    """
    pattern, equals, rest = text.partition("=")
    words = grammar.words_of(rest)
    if not equals or not pattern or not words:
        raise UsageError(f"--set {text!r}: write PATTERN=SETTING[,SETTING...], like 'tok_emb.*=int8,k=20'")
    rule = Rule(pattern, read_settings(words, method, option=f"--set {text!r}"))
    if rule.keeps and rule.fields.keys() - {"keep", "cast"}:
        raise UsageError(f"--set {text!r}: what is kept or cast is not quantized: say one or the other")
    return rule


def parse_method(text: str) -> tuple[str, dict[str, grammar.Value]]:
    """'gptq:int6,k=9' -> its name and the fields that it fixes. Raises UsageError."""
    name, _, rest = (part.strip() for part in text.partition(":"))
    if name not in METHODS and name != KEEP:
        known = [*METHODS, KEEP]
        raise UsageError(f"unknown method {name!r}; {grammar.hint(name, known)}")
    fixed = read_settings(grammar.words_of(rest), name, option=f"--method {text!r}")
    if other := fixed.get("method"):
        raise UsageError(f"--method {text!r} names {other} too: give one, and others with --set PATTERN={other}")
    return name, fixed


def read_settings(
    words: Iterable[str], method: str | None, *, option: str, more: Mapping[str, grammar.Kind] | None = None
) -> dict[str, grammar.Value]:
    """The fields that words fix: of Settings, `keep`, `cast`, "method.field" of a method's own settings, and of `more`.

    A word that names a method speaks for all of them; without one they speak of `method`. Raises UsageError.
    """
    words = list(words)
    method = next((word for word in reversed(words) if word in METHODS), method)
    own = METHODS[method].own_names if method is not None and method in METHODS else {}
    bare: dict[str, dict[str, grammar.Value]] = {**_WORDS, **{name: {"method": name} for name in METHODS}}
    said = grammar.read(words, {**NAMES, **own, **(more or {})}, bare, option=option)
    try:
        _settings(Settings(), {n: v for n, v in said.items() if n in NAMES or n in own} | {"method": method or "auto"})
    except UsageError as error:  # what only all fields together can refuse
        raise UsageError(f"{option}: {error}") from None
    return said


def make(
    tensors: Mapping[str, Tensor],
    *,
    method: str,
    rules: Sequence[Rule] = (),
    search: bool = False,
    base: Settings | None = None,
    priced: Collection[str] = (),
) -> dict[str, TensorPlan]:
    """A plan for every tensor. search: a budget will be searched for. base: settings that no rule speaks of.

    priced: tensors whose curvature is known. With method `auto` the market decides what becomes of them, whatever their
    size; of the others, vectors and small matrices are kept unless a rule names them.

    method: METHOD[:SETTINGS]; any rule wins over its settings, and later rules over earlier ones, field by field. What a
    rule fixes is never searched: with k (or step) fixed, a tensor keeps its step sizes whatever the budget. Bits alone fix
    the integer range; the step inside it is searched.

    Raises UsageError for an unknown method and for patterns that match no tensor, MissingExtraError where a method needs
    more than is installed.
    """
    method, fixed = parse_method(method)
    idle = [r.pattern for r in rules if not any(fnmatchcase(name, r.pattern) for name in tensors)]
    if idle:
        raise UsageError(f"--set {idle[0]!r} matches no tensor; names look like {', '.join(list(tensors)[:3])}")
    base = replace(base or Settings(), method=method)
    rules = [Rule("*", fixed, general=True), *rules]
    plans = {name: _plan(name, tensor, rules, search, base, name in priced) for name, tensor in tensors.items()}
    used = dict.fromkeys(p.settings.method for p in plans.values() if p.settings is not None)
    extras.need(*(package for name in used for package in METHODS[name].packages))
    return plans


def _plan(name: str, tensor: Tensor, rules: Sequence[Rule], search: bool, base: Settings, priced: bool) -> TensorPlan:
    mine = [rule for rule in rules if fnmatchcase(name, rule.pattern)]
    said = _merged(mine)
    speaking = [rule for rule in mine if rule.pattern == name or (tensor.dim() > 1 and rule.pattern != EVERYTHING)]
    asked = any(not rule.general and not rule.keeps for rule in speaking)
    cast = said.pop("cast", None)
    if said.pop("keep", False) or cast:
        kept = TensorPlan(None, KEPT_BY_RULE, cast if cast and tensor.is_floating_point() else None)
        return replace(kept, integers=coded_better(tensor))
    if base.method == KEEP and "method" not in said:
        return TensorPlan(None, KEPT_BY_METHOD, integers=coded_better(tensor))
    if not tensor.is_floating_point():
        return TensorPlan(None, reason_to_keep(tensor), integers=coded_better(tensor))
    chosen = str(said.get("method", base.method))
    market = priced and chosen == "auto" and not asked
    if reason := impossible(tensor) or ("" if market or (asked and _takes(chosen, tensor)) else reason_to_keep(tensor)):
        small = base.method == "auto" and tensor.is_floating_point() and tensor.element_size() > 2 and fits_half(tensor)
        return TensorPlan(None, reason, "float16" if small else None)
    default = EMBEDDING_DEFAULT if any(word in name for word in _EMBEDDINGS) else MATRIX_DEFAULT
    bits: int = said.get("bits", 8 if search else default.bits)
    k = said.get("k", default.k * ((1 << (bits - 1)) - 1) / ((1 << (default.bits - 1)) - 1))  # same step size
    settings = _settings(base, {**said, "bits": bits, "k": k})
    unread = tuple(sorted(name for name in said if not reads(settings.method, name)))
    searched = search and not {"k", "step"} & said.keys()
    return TensorPlan(settings, searched=searched, market=market, unread=unread, asked=asked)


def _merged(rules: Iterable[Rule]) -> dict[str, Any]:
    """What rules fix, later ones over earlier ones field by field; to keep and to quantize undo one another."""
    said: dict[str, Any] = {}
    for rule in rules:
        said = {name: value for name, value in said.items() if name not in {"keep", "cast"}} | rule.fields
    return said


def reads(method: str, name: str) -> bool:
    """Whether a method reads a field of Settings, or "method.field" of its own ones."""
    owner, dot, _ = name.partition(".")
    return owner == method if dot else name in {"method", "step", "scale_per_octave", *METHODS[method].reads}


def _takes(method: str, tensor: Tensor) -> bool:
    """Whether a method can do with a tensor of these dimensions: a scale for every number of a vector saves nothing."""
    return tensor.dim() > 1 or method in {"auto", "quick"}


def unread(plans: Mapping[str, TensorPlan]) -> list[str]:
    """A note of the settings that were asked for and that no method of the plans reads."""
    methods = sorted({p.settings.method for p in plans.values() if p.settings is not None})
    unread = {name for p in plans.values() for name in p.unread}
    idle = sorted(name for name in unread if not any(reads(method, name) for method in methods))
    names = ", ".join("the integer range" if name == "bits" else name for name in idle)
    return [f"set, but not read by {', '.join(methods)}: {names}"] if idle else []


def _settings(base: Settings, said: Mapping[str, Any]) -> Settings:
    """`base` with what was said of its fields, and of its method's own settings."""
    settings = replace(base, **{name: value for name, value in said.items() if "." not in name})
    own = METHODS[settings.method].settings if settings.method in METHODS else None
    if own is None:
        return settings
    mine = {f.name: said[full] for f in fields(own) if (full := f"{settings.method}.{f.name}") in said}
    before = settings.own if isinstance(settings.own, own) else own()
    try:
        return replace(settings, own=replace(before, **mine))
    except (TypeError, ValueError) as error:  # its own checks
        raise UsageError(f"method {settings.method}: {error}") from None


def reason_to_keep(tensor: Tensor) -> str:
    """Why a tensor without curvature is not worth (or not able) to be quantized; "" if it is."""
    shape = matrix_shape(tuple(tensor.shape))
    if not tensor.is_floating_point() or shape is None:
        return impossible(tensor)
    if tensor.dim() == 1:
        return "a vector"
    if tensor.numel() < UNPRICED_WEIGHTS:
        return f"small ({tensor.numel()} weights)"
    return "narrow" if min(shape[1:]) < UNPRICED_SIDE else impossible(tensor)


def impossible(tensor: Tensor) -> str:
    """Why a tensor cannot be quantized at all; "" if it can."""
    if not tensor.is_floating_point():
        return "not floating point"
    if matrix_shape(tuple(tensor.shape)) is None:
        return "a scalar" if tensor.dim() == 0 else "empty"
    if torch.finfo(tensor.dtype).max <= LARGEST:
        return ""
    largest = float(tensor.detach().abs().max())
    return "beyond float32's range" if largest > LARGEST or 0 < largest < LEAST else ""


def listed(value: str | Path | Sequence[Any]) -> Sequence[Any]:
    """One name or path given where several may be, as a list."""
    return [value] if isinstance(value, (str, Path)) else value


def coded_better(tensor: Tensor) -> bool:
    """Whether the values of a tensor are integers that cost fewer bits one by one than a dictionary coder finds.

    Codes of a quantizer do; masks, position tables and permutations do not.
    """
    if (
        tensor.is_floating_point()
        or tensor.is_complex()
        or tensor.dtype == torch.bool
        or tensor.numel() < UNPRICED_WEIGHTS
    ):
        return False
    if tensor.dtype in WITHOUT_ARITHMETIC:
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


def fits_half(tensor: Tensor) -> bool:
    """Whether float16 holds every value to its usual 11 bits: no overflow, nothing but zeros below its normal range."""
    size = tensor.detach().abs()
    return not bool(((size > 65504) | ((size > 0) & (size < 2.0**-14))).any())
