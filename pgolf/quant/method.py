"""What a quantizer is to the rest of pgolf: a pure function, and what one should know of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from pgolf.common.grammar import Kind, kinds
from pgolf.errors import PgolfError, PluginError, is_out_of_memory
from pgolf.packer.plane import Plane
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.settings import Settings

Result = TypeVar("Result")
Quantize = Callable[[Tensor, MatrixCurvature | None, Settings], Plane]


@dataclass(frozen=True)
class Staged:
    """quantize(w, c, s) == finish(w, prepare(w, c, s), s); prepare does not look at s.step.

    expected_bits: (weight, prepared, settings) → about what the codes will take, without rounding anything.
    kind: (weight, prepared, settings) → what matrices have in common that `finish_together` makes side by side on a device,
    None where there is nothing to gain. finish_together: (weights, prepared, settings of each) of one kind → planes, as
    `finish` makes of each, but for a few codes of the same loss.
    """

    prepare: Callable[[Tensor, MatrixCurvature | None, Settings], Any]
    finish: Callable[[Tensor, Any, Settings], Plane]
    expected_bits: Callable[[Tensor, Any, Settings], float]
    kind: Callable[[Tensor, Any, Settings], Hashable | None] | None = None
    finish_together: Callable[[Sequence[Tensor], Sequence[Any], Sequence[Settings]], list[Plane]] | None = None


@dataclass(frozen=True)
class Method:
    """A quantizer and what the user should know of it.

    quantize: (weight float32 [R, C], its curvature or None, settings) → Plane. Its step sizes go with settings.step,
    which the search for a budget turns; it is called on several threads at a time.
    needs_curvature: it is worth collecting curvature for; without any, every method still works.
    staged: the same in stages, where much of the work does not depend on settings.step.
    reads: the fields of Settings that it reads, besides `step` and `scale_per_octave`.
    packages: that it needs besides those of loading, see `pgolf.common.extras`.
    any_dtype: it takes weights in whatever floating dtype they have; else it is given float32.
    settings: a frozen dataclass of its own, every field with a default: what people write as `name:field=value`; the
    quantizer finds an instance as `settings.own`.
    """

    name: str
    quantize: Quantize
    needs_curvature: bool
    description: str
    staged: Staged | None = None
    reads: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    any_dtype: bool = False
    settings: type[Any] | None = None

    @property
    def own_names(self) -> Mapping[str, Kind]:
        """Its own settings, under their full names: "method.field"."""
        own = {} if self.settings is None else kinds(self.settings)
        return {f"{self.name}.{name}": kind for name, kind in own.items() if "." not in name}

    def describe(self, settings: Settings) -> str:
        """The settings that matter, for people: "gptq int6 k=12.85"."""
        words = [self.name]
        if self.settings is not None and isinstance(settings.own, self.settings):
            own = ((field.name, getattr(settings.own, field.name)) for field in fields(self.settings))
            words += [f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in own]
        if self.name == "auto" and settings.trellis:
            words.append(f"trellis={settings.trellis}")
        if "bits" in self.reads or self.name == "quick":  # which reads none, but artifacts say so
            words.append(f"int{settings.bits}")
        if "k" in self.reads:
            words.append(f"k={(settings.k or 0) * settings.step:.4g}")
        elif settings.step != 1.0:
            words.append(f"step={settings.step:.4g}")
        return " ".join(words)


def checked(name: str, part: object) -> Method:
    """The method that an entry point means: itself, or what a function without arguments returns.

    TypeError or ValueError where it is none, has another name, or its settings cannot be told from those of all methods.
    """
    method = part if isinstance(part, Method) or not callable(part) else part()
    if not isinstance(method, Method):
        raise TypeError(f"it is a {type(method).__name__}, not a pgolf.quant.Method")
    if method.name != name:
        raise ValueError(f"it calls itself {method.name!r}")
    if method.settings is not None:
        _check_own(method.settings)
    return _guarded(method)


def _check_own(own: type[Any]) -> None:
    if not is_dataclass(own) or not getattr(own, "__dataclass_params__").frozen:  # noqa: B009  # typeshed hides it
        raise TypeError(f"its settings are {own!r}, not a frozen dataclass")
    shared = {field.name for field in fields(own)} & {field.name for field in fields(Settings)}
    if shared:
        raise ValueError(f"its setting {min(shared)} is one of pgolf.quant.Settings: read settings.{min(shared)}")
    own()  # its defaults must do


def _guarded(method: Method) -> Method:
    """The method with its faults told in one line that names it, their cause kept."""

    def guarded(function: Callable[..., Result], *arguments: Any) -> Result:
        try:
            return function(*arguments)
        except PgolfError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise PluginError(f"method {method.name!r} failed with {type(error).__name__}: {error}") from error

    def plane(function: Callable[..., Plane], weight: Tensor, *arguments: Any) -> Plane:
        made = guarded(function, weight, *arguments)
        if wrong := _wrong(made, tuple(weight.shape)):
            raise PluginError(f"method {method.name!r} gave {wrong} for a matrix {list(weight.shape)}")
        return made

    staged = method.staged and Staged(
        partial(guarded, method.staged.prepare),
        partial(plane, method.staged.finish),
        partial(guarded, method.staged.expected_bits),
    )
    return replace(method, quantize=partial(plane, method.quantize), staged=staged)


def _wrong(made: object, shape: tuple[int, ...]) -> str:
    """What is wrong with a stranger's plane, "" for nothing."""
    if not isinstance(made, Plane):
        return f"a {type(made).__name__} instead of a Plane"
    if made.codes.shape != shape or made.codes.dtype.kind != "i":
        return f"codes {list(made.codes.shape)} of {made.codes.dtype}"
    for side, scale, length in zip(("row", "col"), (made.row_scale, made.col_scale), shape, strict=True):
        if scale is not None and scale.index.shape != (length,):
            return f"{side}_scale {list(scale.index.shape)}"
    return ""
