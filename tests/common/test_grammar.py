import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from pgolf.common.grammar import Kind, Range, check, hint, kinds, read, words_of
from pgolf.errors import UsageError


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    depth: Annotated[int, Range(1, 9)] = 2


@dataclass(frozen=True)
class Outer:
    steps: int | None = None
    mode: Literal["fast", "slow"] = "fast"
    fold: bool = True
    gain: Annotated[float | None, Range(0, 2, above=True)] = None
    note: str = ""
    inner: Inner = field(default_factory=Inner)
    table: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)


NAMES = kinds(Outer)


def said(text: str, bare: dict[str, dict[str, object]] | None = None) -> dict[str, object]:
    return dict(read(words_of(text), NAMES, bare, option=f"--it {text!r}"))  # type: ignore[arg-type]


def test_kinds_are_read_from_the_fields_and_dotted_where_nested() -> None:
    assert list(NAMES) == ["steps", "mode", "fold", "gain", "note", "inner.rate", "inner.depth"]
    assert NAMES["steps"] == Kind(int, optional=True)
    assert NAMES["mode"].choices == ("fast", "slow")
    assert NAMES["gain"] == Kind(float, True, (), Range(0, 2, above=True))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("steps=7", {"steps": 7}),
        ("steps=1_000", {"steps": 1000}),
        ("steps=None", {"steps": None}),
        ("mode=slow", {"mode": "slow"}),
        ("fold=0", {"fold": False}),
        ("fold=ON", {"fold": True}),
        ("gain=2", {"gain": 2.0}),
        ("note=a=b", {"note": "a=b"}),
        ("rate=1e-3", {"inner.rate": 0.001}),
        ("inner.rate=.5, depth = 3,", {"inner.rate": 0.5, "inner.depth": 3}),
        ("depth=1,depth=2", {"inner.depth": 2}),
        ("", {}),
        ("quickly,depth=1", {"mode": "fast", "fold": False, "inner.depth": 1}),
    ],
)
def test_values_by_the_type_of_their_field(text: str, value: dict[str, object]) -> None:
    assert said(text, {"quickly": {"mode": "fast", "fold": False}}) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps=2.5", "steps is a whole number, not '2.5'"),
        ("rate=inf", "rate is a number, not 'inf'"),
        ("rate=x", "rate is a number, not 'x'"),
        ("gain=x", "gain is a positive number, not 'x'"),
        ("gain=0", "gain is 0.0: it must be a positive number, at most 2"),
        ("gain=nan", "gain is nan: it must be a positive number, at most 2"),
        ("depth=10", "depth is 10: it must lie between 1 and 9"),
        ("fold=2", "fold is 2: it must be 0 or 1"),
        ("fold=maybe", "fold is 0 or 1, not 'maybe'"),
        ("mode=fats", "mode is fats: it must be one of fast, slow"),
        ("depht=3", "'depht=3' is not a setting; did you mean depth?"),
        ("quikly", "'quikly' is not a setting; did you mean quickly?"),
        ("quickly=3", "'quickly=3' is not a setting; did you mean quickly?"),
        (
            "zzz",
            "'zzz' is not a setting; known: quickly, steps=, mode=, fold=, gain=, note=, inner.rate=, inner.depth=",
        ),
        ("depth", "'depth' is a whole number: write name=value"),
    ],
)
def test_messages_name_the_option_the_word_and_what_is_known(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        said(text, {"quickly": {"mode": "fast"}})
    assert str(caught.value) == f"--it {text!r}: {message}"


def test_an_end_that_two_names_share_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^here: did you mean a\.rate or b\.rate\?$"):
        read(["rate=1"], {"a.rate": Kind(float), "b.rate": Kind(float)}, option="here")


def test_limits_hold_in_python_too() -> None:
    assert Outer(gain=None, fold=False).gain is None
    with pytest.raises(UsageError, match=r"^gain is 3: it must be a positive number, at most 2$"):
        Outer(gain=3)
    with pytest.raises(UsageError, match="mode is wild"):
        Outer(mode="wild")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Range(0), "be 0 or more"),
        (Range(0, above=True), "be a positive number"),
        (Range(-2, 2), "lie between -2 and 2"),
        (Range(0, 10**6), "lie between 0 and 1000000"),
    ],
)
def test_ranges_say_what_they_hold(limits: Range, words: str) -> None:
    assert str(limits) == words
    assert math.nan not in limits  # noqa: PLW0177


def test_a_hint_is_a_near_miss_or_everything() -> None:
    assert hint("gptqq", ["rtn", "gptq"]) == "did you mean gptq?"
    assert hint("magic", ["rtn", "gptq"]) == "known: rtn, gptq"
