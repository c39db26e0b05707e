"""One grammar for everything that is set by words: SETTINGS = WORD[,WORD...], a WORD is NAME=VALUE or bare.

Names, kinds and limits are those of a frozen dataclass's fields, so a setting is declared once:

    strength: Annotated[float, Range(0, 10)] = 1.0

Neither tyro nor jsonargparse would save these lines: they read a shell word a field and print errors of their own, while
here many fields and bare words share one shell word, and which names there are depends on the method among them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pgolf.errors import UsageError

Value = int | float | str | None
NEAR = 0.6  # of difflib's similarity, above which a word is taken for a slip
_KNOWN: dict[type[Any], Mapping[str, Kind]] = {}  # reading annotations takes longer than rounding a small matrix
_SWITCH = {"true": 1, "yes": 1, "on": 1, "false": 0, "no": 0, "off": 0}


@dataclass(frozen=True)
class Range:
    """Numbers that a field may hold, ends included; above: without the lower one."""

    least: float
    most: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        if self.above and self.least == 0:
            return "be a positive number" + ("" if self.most == math.inf else f", at most {self.most:.12g}")
        if self.most == math.inf:
            return f"be {self.least:.12g} or more"
        return f"lie between {self.least:.12g} and {self.most:.12g}"


@dataclass(frozen=True)
class Kind:
    """What a field holds: int, float, bool or str; optional: None too; choices: of a Literal; limits: of an Annotated."""

    base: type
    optional: bool = False
    choices: tuple[str, ...] = ()
    limits: Range | None = None

    def __str__(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.base is float and self.limits and self.limits.above and self.limits.least == 0:
            return "a positive number"
        return {int: "a whole number", float: "a number", bool: "0 or 1"}.get(self.base, "a word")

    def read(self, text: str) -> Value:
        """The value that `text` says. Raises ValueError where it says none of this kind; limits are `wrong`'s."""
        if self.optional and text.lower() == "none":
            return None
        if self.base is bool:
            number = _SWITCH.get(text.lower())
            number = int(text) if number is None else number
            return bool(number) if number in {0, 1} else number
        value: Value = self.base(text)
        if isinstance(value, float) and self.limits is None and not math.isfinite(value):
            raise ValueError  # where there are limits, they say what is wrong
        return value

    def wrong(self, value: Value) -> str:
        """What the limits have against a value, "" for nothing."""
        if value is None and self.optional:
            return ""
        if self.choices:
            return "" if value in self.choices else f"be {self}"
        if self.base is bool:
            return "" if value in {0, 1} else "be 0 or 1"
        return (
            ""
            if self.limits is None or (isinstance(value, (int, float)) and value in self.limits)
            else f"{self.limits}"
        )


def kinds(owner: type[Any]) -> Mapping[str, Kind]:
    """The fields of a dataclass by name; those of a dataclass inside it by dotted names.

    Left out is what words cannot say: fields that are neither numbers, switches, words nor dataclasses.
    """
    if owner in _KNOWN:
        return _KNOWN[owner]
    found: dict[str, Kind] = {}
    hints = get_type_hints(owner, include_extras=True)
    for field in fields(owner):
        hint = hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            found |= {f"{field.name}.{name}": kind for name, kind in kinds(hint).items()}
        elif kind := _kind(hint):
            found[field.name] = kind
    return _KNOWN.setdefault(owner, found)


def _kind(hint: Any) -> Kind | None:
    limits = None
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        limits = next((note for note in notes if isinstance(note, Range)), None)
    if get_origin(hint) is Literal:
        return Kind(str, choices=get_args(hint))
    members = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)
    bases = [m for m in members if m in {bool, int, float, str}]
    return Kind(bases[0], type(None) in members, (), limits) if bases else None


def check(settings: object, *leave_out: str) -> None:
    """UsageError where a field of a dataclass lies beyond its limits: for `__post_init__`."""
    for name, kind in kinds(type(settings)).items():
        value = None if name in leave_out or "." in name else getattr(settings, name)
        if value is not None and (wrong := kind.wrong(value)):
            raise UsageError(f"{name} is {value}: it must {wrong}")


def words_of(text: str) -> list[str]:
    """The words of SETTINGS; empty ones are skipped."""
    return [word for word in (w.strip() for w in text.split(",")) if word]


def read(
    words: Iterable[str],
    names: Mapping[str, Kind],
    bare: Mapping[str, Mapping[str, Value]] | None = None,
    *,
    option: str,
) -> dict[str, Value]:
    """What the words say: full name -> value, later words winning.

    names: of NAME=VALUE; the end of a dotted name will do where it is one's only. bare: what each bare word sets.
    option: how messages begin, as "--set 'x=int9'". Raises UsageError.
    """
    said: dict[str, Value] = {}
    bare = bare or {}
    for word in words:
        name, equals, text = (part.strip() for part in word.partition("="))
        if not equals and name in bare:
            said |= bare[name]
            continue
        full = _find(name, names, bare, word, option)
        if not equals:
            raise UsageError(f"{option}: {name!r} is {names[full]}: write name=value")
        said[full] = _value(name, names[full], text, option)
    return said


def _find(name: str, names: Mapping[str, Kind], bare: Iterable[str], word: str, option: str) -> str:
    """The one full name that `name` is, or is the end of."""
    matches = [name] if name in names else [full for full in names if full.endswith("." + name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"{option}: did you mean {' or '.join(matches)}?")
    spoken = [*bare, *(full.rpartition(".")[2] for full in names)]
    raise UsageError(f"{option}: {word!r} is not a setting; {hint(name, spoken, [*bare, *(f'{n}=' for n in names)])}")


def _value(name: str, kind: Kind, text: str, option: str) -> Value:
    try:
        value = kind.read(text)
    except ValueError:
        raise UsageError(f"{option}: {name} is {kind}, not {text!r}") from None
    if wrong := kind.wrong(value):
        raise UsageError(f"{option}: {name} is {value}: it must {wrong}")
    return value


def hint(word: str, spoken: Iterable[str], known: Iterable[str] | None = None) -> str:
    """The end of a message about an unknown word: what it was probably meant to be, or else all that is known."""
    spoken = list(spoken)
    near = difflib.get_close_matches(word, spoken, n=1, cutoff=NEAR)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(spoken if known is None else known)}"
