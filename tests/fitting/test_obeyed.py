"""What --set says of a tensor is carried out or refused with the reason; nothing is lost without a word."""

import json

import pytest
import torch
from click.testing import CliRunner

import pgolf
from pgolf.cli import main
from pgolf.errors import SettingError, UsageError
from pgolf.fitting import obeyed, plan
from pgolf.fitting.inputs import job_of
from pgolf.models import checkpoint
from pgolf.quant import METHODS
from pgolf.train.qat.hooks import QAT
from tests.helpers import generator

G = generator(7)
STATE = {
    "big": torch.randn(64, 48, generator=G),
    "other": torch.randn(96, 48, generator=G),
    "little": torch.randn(16, 16, generator=G),
    "thin": torch.randn(1024, 3, generator=G),
    "bank": torch.randn(3, 20, 5, generator=G),
    "gain": torch.ones(48),
    "bias": torch.ones(48),
    "scale": torch.tensor(2.0),
    "count": torch.arange(5000).reshape(50, 100),
    "phase": torch.ones(8, 8, dtype=torch.complex64),
    "mask": torch.ones(60, 60, dtype=torch.bool),
    "empty": torch.zeros(0, 8),
}


def made(*rules, **options):
    options = {"method": "sdclip", "search": False} | options
    return job_of(STATE, rules=rules, **options)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 7), (7, 1), (2, 3), (16, 16), (300, 2), (2, 300), (5, 3, 2), (2, 2, 3, 3)]
)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_matrix_of_any_size_is_quantized_by_any_method_where_that_is_asked_for(shape, method):
    w = torch.randn(shape, generator=generator(1))
    report = pgolf.pack({"w": w}, None, rules=[f"w={method}"])
    assert report.rows[0].method.startswith(method)
    assert report.rows[0].error < 0.9
    assert report.notes == []
    assert pgolf.pack({"w": w}, None, method=method).rows[0].kept  # a method is no setting of a tensor


def test_every_kind_of_setting_reaches_a_small_matrix():
    rules = ["little=gptq,int4,k=5,step=2,damp=.5", "thin=auto,trellis=16,unbias=.3", "bank=rtn,int3,percentile=.9"]
    plans = made(*rules).plans
    s = plans["little"].settings
    assert (s.method, s.bits, s.k, s.step, s.damp) == ("gptq", 4, 5.0, 2.0, 0.5)
    assert (plans["thin"].settings.trellis, plans["thin"].settings.unbias) == (16, 0.3)
    assert (plans["bank"].settings.method, plans["bank"].settings.bits) == ("rtn", 3)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (["gain=int6"], "'gain' cannot be carried out: gain (a vector)"),
        (["*a*n=k=9"], "gain (a vector)"),
        (["scale=step=2"], "scale (a scalar)"),
        (["count=rtn"], "count (not floating point)"),
        (["phase=auto,trellis=4"], "phase (not floating point)"),
        (["empty=int4"], "empty (empty)"),
        (["count=fp16"], "count (int64 is not floating point)"),
        (["phase=bf16"], "phase (complex64 is not floating point)"),
        (["mask=fp32"], "mask (bool is not floating point)"),
        (["big=trellis=8"], "big (sdclip does not read trellis, auto does)"),
        (["big=rtn,int6", "other=rtn", "little=lam=2,damp=1"], "little (sdclip does not read lam, damp)"),
        (["big=int6", "gain=int6"], "'gain' cannot"),
        (["gain=step=2", "big=keep"], "'gain' cannot"),
    ],
)
def test_what_no_matched_tensor_can_take_is_refused_with_the_reason(rules, words):
    with pytest.raises(SettingError) as caught:
        made(*rules)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_what_some_can_take_is_carried_out_and_the_others_are_named():
    for rule, small in (("*=int5", True), ("?*=int5", False)):  # * speaks of no tensor in particular
        job = made(rule)
        (note,) = job.notes
        assert note.startswith(f"--set {rule[:-5]!r} was not carried out on all that it matches: b")
        for told in ("gain (a vector)", "count, mask, phase (not floating point)", "scale (a scalar)", "empty (empty)"):
            assert told in note
        assert ("small (300 weights)" in note) == small
        assert job.quantized == (["big", "other"] if small else ["bank", "big", "little", "other", "thin"])
    (note,) = made("*=fp16").notes
    assert "count (int64 is not floating point)" in note
    many = {f"{i}.g": torch.ones(4) for i in range(9)} | {"w": torch.randn(64, 64)}
    assert "0.g, 1.g, 2.g, 3.g and 5 more (a vector)" in job_of(many, rules=["*=rtn"], search=False).notes[0]


def test_nothing_is_said_where_everything_is_carried_out_or_later_rules_settle_it():
    for rules in (
        ["gain=keep"], ["*=keep"], ["gain=fp16", "scale=bf16"], ["*i*t*=int6"], ["gain=int6", "gain=keep"],
        ["count=fp16", "c*=keep"], ["gain=int6", "*=keep", "big=int4"], ["big=trellis=8", "big=auto,trellis=4"],
    ):  # fmt: skip
        assert made(*rules).notes == (), rules


def test_the_later_of_keep_and_quantize_wins():
    plans = made("*=keep", "big=int5", "other=fp16", "other=int3", "little=rtn", "little=bf16").plans
    assert plans["big"].settings.bits == 5
    assert plans["other"].settings.bits == 3
    assert plans["other"].cast is None
    assert plans["little"].settings is None
    assert plans["little"].cast == "bfloat16"
    assert plans["thin"].settings is None
    for text in ("big=keep,int6", "big=fp16,k=9", "big=rtn,keep"):
        with pytest.raises(UsageError, match="one or the other"):
            made(text)


def test_a_method_that_keeps_all_quantizes_what_a_rule_names_a_method_for():
    assert made("big=gptq,int6", method="keep").quantized == ["big"]
    with pytest.raises(SettingError, match="asked for with --method keep"):
        made("big=int6", method="keep")


def test_what_one_method_reads_and_another_does_not_is_told_of_the_rule():
    notes = made("big=int6,trellis=4", "other=auto").notes
    assert notes == ("--set 'big': sdclip does not read trellis",)


def test_a_fixed_step_is_obeyed_where_codes_take_more_than_the_tensor():
    w = torch.randn(64, 48, generator=generator(2)).to(torch.bfloat16)
    assert pgolf.pack({"w": w}, None, method="auto:step=1e-6").rows[0].kept == "coded it would take more"
    assert pgolf.pack({"w": w}, None, rules=["w=step=1e-6"]).rows[0].method.startswith("auto")


def test_what_rounding_would_make_infinite_is_kept_with_a_note():
    w = torch.full((64, 48), 65504.0, dtype=torch.float16) * torch.rand(64, 48, generator=generator(4)).half()
    report = pgolf.pack({"w": w}, None, rules=["w=rtn,int2,percentile=1,step=1.5"])
    assert report.rows[0].kept == "rounded, it would pass float16's range"
    assert "kept, although --set wanted codes: w (rounded, it would pass float16's range)" in report.notes


class Roped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(48, 64, bias=False)
        self.register_buffer("cos", torch.randn(64, 48, generator=generator(3)))


def test_buffers_are_quantized_only_by_a_rule_that_speaks_of_them_alone():
    module = Roped()
    job = job_of(module, rules=["*=rtn"], search=False)
    assert job.quantized == ["up.weight"]
    assert "cos (a buffer)" in job.notes[0]
    assert job_of(module, rules=["cos=rtn,int8"], search=False).quantized == ["cos", "up.weight"]


def test_infinities_cannot_be_quantized():
    state = {"w": torch.randn(64, 64), "mask": torch.zeros(64, 64).index_fill_(1, torch.tensor([3]), float("-inf"))}
    with pytest.raises(SettingError, match=r"mask \(holds infinities\)"):
        job_of(state, rules=["mask=int6"], search=False)
    assert "mask (holds infinities)" in job_of(state, rules=["*=int6"], method="rtn", search=False).notes[0]


def test_qat_refuses_too():
    with pytest.raises(
        UsageError, match=r"QAT 'norm\.\*' cannot be carried out: norm\.weight, norm\.bias \(a vector\)"
    ):
        QAT(
            torch.nn.ModuleDict({"l": torch.nn.Linear(64, 64), "norm": torch.nn.LayerNorm(64)}),
            "int6",
            rules=["norm.*=int4"],
        )


def test_the_command_says_it_in_one_line_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({n: t for n, t in STATE.items() if n in {"big", "gain", "little"}}, "c.pt")

    def run(*rules):
        words = [word for rule in rules for word in ("--set", rule)]
        return CliRunner().invoke(main, ["pack", "c.pt", "--method", "sdclip", "--json", *words])

    refused = run("gain=int4")
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert "gain (a vector)" in refused.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]
    facts = json.loads(run("little=int4").stdout)
    assert next(r["method"] for r in facts["rows"] if r["name"] == "little").startswith("sdclip int4")


def test_general_rules_answer_for_nothing():
    general = plan.Rule("*", {"trellis": 4}, general=True)
    plans = plan.make(STATE, method="rtn", rules=[general])
    assert plans["little"].settings is None
    assert obeyed.left([], plans, STATE) == []
    assert checkpoint.dtype_name(torch.int64) == "int64"
