import pytest

from pgolf.errors import UsageError
from pgolf.quant.settings import HALF
from pgolf.sweep.points import points_of, split_methods


def test_a_comma_begins_a_method_only_before_a_method_name():
    assert split_methods("auto, gptq:int6,k=12.85,sdclip:int5,contest") == [
        "auto", "gptq:int6,k=12.85", "sdclip:int5", "contest",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["magic", "auto,int6", "k=3", "", "gptq:int6,magic:int4"])
def test_methods_that_cannot_be_read(text):
    with pytest.raises(UsageError, match="--methods"):
        split_methods(text)


def test_every_method_at_every_budget_and_a_fixed_one_once():
    points = points_of("auto:trellis=0,gptq:int6,k=9", [3000, 2000, 2000])
    assert [(p.series, p.label, p.budget) for p in points] == [
        ("auto:trellis=0", "2,000 B", 2000), ("auto:trellis=0", "3,000 B", 3000), ("gptq:int6", "k=9", None),
    ]  # fmt: skip
    assert points[0].how()["settings"].trellis == 0
    assert points[2].rules == ("*=int6,k=9",)
    assert len({p.key for p in points}) == 3


def test_clips_of_one_method_are_one_series():
    assert {p.series for p in points_of("gptq:int6,k=9,gptq:int6,k=20", [])} == {"gptq:int6"}


def test_a_tuned_method_is_a_series_of_its_own():
    open_loop, tuned = points_of("auto:trellis=4,auto+tune:trellis=4", [3000], tune=5000)
    assert (open_loop.series, open_loop.tune, open_loop.how()["tune"]) == ("auto:trellis=4", None, None)
    assert (tuned.series, tuned.method, tuned.how()["tune"]) == ("auto+tune:trellis=4", "auto", 5000)
    assert tuned.key != points_of("auto+tune:trellis=4", [3000], tune=6000)[0].key
    assert open_loop.key == points_of("auto:trellis=4", [3000])[0].key == "49e78c54b6414598"
    with pytest.raises(UsageError, match=r"auto\+tune needs --tune TOKENS"):
        points_of("auto+tune", [3000])


def test_coders_are_told_apart_only_where_there_are_several():
    assert [p.series for p in points_of("rtn", [10], coders=["ours"])] == ["rtn"]
    both = points_of("rtn", [10], coders=["ours", "brotli"])
    assert [(p.series, p.coder) for p in both] == [("rtn + rans", "rans"), ("rtn + brotli", "brotli")]
    assert both[1].how()["settings"].scale_per_octave == HALF
    with pytest.raises(UsageError, match="'lha' is not known"):
        points_of("rtn", [10], coders=["lha"])


def test_the_contest_is_a_curve_of_its_own():
    points = points_of("contest", [])
    assert {p.series for p in points} == {"contest"}
    home = next(p for p in points if p.label == "k=12.85")
    assert (home.method, home.coder, home.budget, home.options) == ("gptq", "brotli", None, {"step": 1.0})


@pytest.mark.parametrize(
    ("text", "why"), [("auto", "--budgets"), ("gptq:k=none", "positive"), ("auto:trellis=x", "number")]
)
def test_points_that_cannot_be_made(text, why):
    with pytest.raises(UsageError, match=why):
        points_of(text, [])


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("trellis=7", "a trellis of 7 states is not known; known: 0"),
        ("unbias=nan", "unbias is nan"),
        ("damp_inputs=-1", "damp_inputs is -1.0"),
        ("damp_outputs=1e300", r"damp_outputs is 1e\+300: it must lie between 0 and 1000000"),
        ("two_sided=2", "two_sided is 2"),
    ],
)
def test_options_that_no_method_understands_are_refused_before_the_sweep(option, says):
    with pytest.raises(UsageError, match=says):
        points_of(f"auto:{option}", [5000])
