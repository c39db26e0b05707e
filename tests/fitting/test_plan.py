import pytest
import torch

from pgolf.errors import UsageError
from pgolf.fitting import plan

TENSORS = {
    "tok_emb.weight": torch.randn(64, 48),
    "blocks.0.fc": torch.randn(96, 48),
    "blocks.1.fc": torch.randn(96, 48),
    "bank": torch.randn(3, 32, 32),
    "gain": torch.ones(48),
    "count": torch.arange(5000).reshape(50, 100),
    "conv": torch.randn(64, 1, 40),
    "thin": torch.randn(1024, 3),
    "little": torch.randn(16, 16),
    "scalar": torch.tensor(1.0),
}


def made(*rules, method="sdclip", **options):
    return plan.make(TENSORS, method=method, rules=[plan.parse_rule(r) for r in rules], **options)


def test_defaults_are_the_contests_and_reasons_are_given():
    plans = made()
    assert (plans["blocks.0.fc"].settings.bits, plans["blocks.0.fc"].settings.k) == (6, 12.85)
    assert (plans["tok_emb.weight"].settings.bits, plans["tok_emb.weight"].settings.k) == (8, 20.0)
    assert plans["bank"].settings is not None
    assert plans["conv"].settings is not None
    reasons = {name: p.kept for name, p in plans.items() if p.settings is None}
    assert reasons == {
        "gain": "a vector",
        "count": "not floating point",
        "thin": "narrow",
        "little": "small (256 weights)",
        "scalar": "a scalar",
    }


def test_later_rules_win_field_by_field():
    plans = made("blocks.*=int5,k=6", "blocks.1.*=k=7,gptq")
    assert (plans["blocks.0.fc"].settings.bits, plans["blocks.0.fc"].settings.k) == (5, 6.0)
    s = plans["blocks.1.fc"].settings
    assert (s.bits, s.k, s.method) == (5, 7.0, "gptq")


def test_what_is_fixed_is_not_searched():
    plans = made("blocks.0.*=k=9", "blocks.1.*=int5", search=True)
    assert not plans["blocks.0.fc"].searched
    assert plans["blocks.1.fc"].searched
    assert plans["blocks.0.fc"].at(3.0).step == 1.0
    assert plans["blocks.1.fc"].at(3.0).step == 3.0
    assert plans["blocks.1.fc"].at(3.0).bits == 5


def test_searching_widens_the_grid_at_the_same_step():
    s = made(search=True)["blocks.0.fc"].settings
    assert s.bits == 8
    assert s.k / s.top == pytest.approx(12.85 / 31)


@pytest.mark.parametrize(
    ("method", "rules", "note"),
    [
        ("rtn:trellis=8", (), ["set, but not read by rtn: trellis"]),
        ("auto", ("*=int6,k=9,step=2",), ["set, but not read by auto: the integer range, k"]),
        ("auto", ("*=int6", "bank=rtn"), []),
        ("auto:trellis=16", ("bank=rtn",), []),
        ("gptq:int6,k=9,block=64", (), []),
        ("keep", ("*=int6",), []),
    ],
)
def test_settings_that_nobody_reads_are_noted(method, rules, note):
    assert plan.unread(made(*rules, method=method)) == note


def test_any_setting_of_any_method_by_pattern():
    plans = made("*=int6,step=2", "blocks.*=auto,trellis=32,unbias=.3,two_sided=no", method="rtn:percentile=.9")
    s = plans["blocks.0.fc"].settings
    assert (s.method, s.trellis, s.unbias, s.two_sided, s.step, s.percentile) == ("auto", 32, 0.3, False, 2.0, 0.9)
    assert plans["bank"].settings.trellis == 8


def test_keep_and_casts():
    plans = made("blocks.0.*=keep", "bank=fp16")
    assert plans["blocks.0.fc"].settings is None
    assert plans["blocks.0.fc"].cast is None
    assert plans["bank"].cast == "float16"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("x", "PATTERN=SETTING"),
        ("=int6", "PATTERN=SETTING"),
        ("a=", "PATTERN=SETTING"),
        ("a=int9", "not a setting"),
        ("a=k=-1", "positive number"),
        ("a=k=x", "positive number"),
        ("a=percentile=2", "positive number"),
        ("a=wat", "known: int2"),
    ],
)
def test_malformed_rules_say_what_is_known(rule, message):
    with pytest.raises(UsageError, match=message):
        plan.parse_rule(rule)


def test_patterns_that_match_nothing_are_errors():
    with pytest.raises(UsageError, match=r"'nothing\.\*' matches no tensor"):
        made("nothing.*=int6")


def test_unknown_methods_are_named():
    with pytest.raises(UsageError, match="unknown method 'magic'"):
        made(method="magic")


@pytest.mark.parametrize(
    ("shape", "matrices"),
    [
        ((4, 5), (1, 4, 5)),
        ((3, 32, 16), (3, 32, 16)),
        ((64, 1, 9), (1, 64, 9)),
        ((8, 4, 3, 3), (1, 8, 36)),
        ((5,), (1, 5, 1)),
        ((12, 512, 4), (1, 12, 2048)),
        ((192, 8, 64), (1, 192, 512)),
        ((192, 64, 256), (192, 64, 256)),
        ((512, 256, 3), (1, 512, 768)),
        ((3, 8, 8), (3, 8, 8)),
        ((), None),
        ((0, 4), None),
    ],
)
def test_shapes_as_matrices(shape, matrices):
    assert plan.matrix_shape(shape) == matrices


def test_half_precision_must_hold_the_values():
    assert plan.fits_half(torch.tensor([0.0, 1.0, -600.0]))
    assert not plan.fits_half(torch.tensor([1e5]))
    assert not plan.fits_half(torch.tensor([1e-6]))
