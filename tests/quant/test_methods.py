"""Methods from outside: registered, set by the one grammar, held to what they promise."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pgolf
from pgolf.errors import PluginError, UsageError
from pgolf.fitting import packing, plan
from pgolf.loading.anatomy import inspect
from pgolf.packer.plane import HALF
from pgolf.quant import METHODS, MatrixCurvature, Method, Plane, Range, Scale, Settings, describe, register
from pgolf.quant.method import Quantize
from pgolf.sweep.points import points_of
from pgolf.train import QAT
from pgolf.train.qat.settings import parse_options
from tests.helpers import generator, toy_state


@dataclass(frozen=True)
class Mine:
    """width: of a step at settings.step 1, in standard deviations."""

    width: Annotated[float, Range(0.01, 9)] = 0.5
    odd: bool = False

    def __post_init__(self) -> None:
        if self.odd and self.width == 1:
            raise ValueError("width 1 is even")


def quantize(weight: Tensor, curvature: MatrixCurvature | None, settings: Settings) -> Plane:
    """One step a matrix, on the columns' side: nothing that the classic methods do."""
    step = float(weight.std()) * settings.own.width * settings.step
    col_scale = Scale.nearest(np.full(weight.shape[1], step), settings.scale_per_octave)
    return Plane(np.rint(weight.numpy() / col_scale.values()).astype(np.int32), col_scale=col_scale)


MINE = Method("mine", quantize, False, "a test's own", settings=Mine)


@pytest.fixture(autouse=True)
def mine() -> Iterator[Method]:
    register(MINE)
    yield METHODS["mine"]
    METHODS.others.pop("mine", None)


class Watched:
    """Settings that remember what was read of them."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self.read = settings, set[str]()

    def __getattr__(self, name: str) -> object:
        self.read.add("bits" if name == "top" else name)
        return getattr(self._settings, name)


@pytest.mark.parametrize("name", METHODS.ours)
def test_a_method_reads_the_settings_that_it_says_it_reads(name: str) -> None:
    matrix = torch.randn(24, 32, generator=generator())
    root = torch.randn(32, 32, generator=generator(1))
    known = MatrixCurvature(root @ root.T / 32, torch.eye(24) + 0.1)
    seen: set[str] = set()
    for curvature in (known, None):
        watched = Watched(Settings(name))
        METHODS[name].quantize(matrix, curvature, watched)  # type: ignore[arg-type]
        seen |= watched.read
    assert seen - {"step", "scale_per_octave"} == set(METHODS[name].reads)


def test_settings_of_its_own_by_words() -> None:
    rules = [plan.parse_rule(r, "mine") for r in ("up.*=width=2", "down.*=auto,trellis=4")]
    plans = plan.make(toy_state(), method="mine:width=.25,int6", rules=rules)
    found = {name: p.settings for name, p in plans.items() if p.settings}
    assert [found[n].own for n in ("tok_emb.weight", "up.weight")] == [Mine(0.25), Mine(2.0)]
    assert found["down.weight"].own is None
    assert (found["down.weight"].method, found["down.weight"].trellis, found["down.weight"].bits) == ("auto", 4, 6)
    assert describe(found["up.weight"]) == "mine width=2 odd=False"


def test_a_rule_that_names_a_method_speaks_of_its_settings() -> None:
    plans = plan.make(toy_state(), method="rtn", rules=[plan.parse_rule("up.*=mine,odd=1"), plan.parse_rule("*=int5")])
    assert plans["up.weight"].settings is not None
    assert plans["up.weight"].settings.own == Mine(odd=True)
    assert plans["down.weight"].settings is not None
    assert plans["down.weight"].settings.own is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine:width=20", "--method 'mine:width=20': width is 20.0: it must lie between 0.01 and 9"),
        ("mine:witdh=2", "--method 'mine:witdh=2': 'witdh=2' is not a setting; did you mean width?"),
        ("mine:odd=1,width=1", "--method 'mine:odd=1,width=1': method mine: width 1 is even"),
        ("auto:width=2", "--method 'auto:width=2': 'width=2' is not a setting; known: int2"),
        ("mien", "unknown method 'mien'; did you mean mine?"),
        ("mine:auto", "--method 'mine:auto' names auto too: give one, and others with --set PATTERN=auto"),
    ],
)
def test_what_a_method_cannot_be_told(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        packing.pack(toy_state(), None, method=spec)
    assert str(caught.value).startswith(message)


def test_it_fills_a_budget_and_the_report_and_the_artifact_name_it(tmp_path: Path) -> None:
    report = pgolf.pack(toy_state(), tmp_path / "m.pgolf", budget=9000, method="mine:width=2")
    assert 8000 < report.artifact_bytes <= 9000
    methods = {row.name: row.method for row in report.rows}
    assert methods["up.weight"].startswith("mine width=2 odd=False step=")
    notes = {t["name"]: t.get("note") for t in inspect(tmp_path / "m.pgolf")["tensors"]}
    assert notes["up.weight"] == methods["up.weight"]


def test_deadline_and_estimate_need_no_stages() -> None:
    plain = packing.pack(toy_state(), None, budget=9000, method="mine")
    hurried = packing.pack(toy_state(), None, budget=9000, method="mine", deadline=60)
    mixed = packing.pack(toy_state(), None, budget=9000, method="auto:trellis=0", rules=["up.*=mine"], deadline=60)
    assert plain.data == hurried.data
    assert {row.name: row.method for row in mixed.rows}["up.weight"].startswith("mine ")
    assert pgolf.estimate(toy_state(), budget=9000, method="mine").num_bytes == plain.artifact_bytes


def test_settings_in_a_method_are_those_of_a_rule_for_everything() -> None:
    spelled = packing.pack(toy_state(), None, method="auto:trellis=4,unbias=0.1,step=2")
    ruled = packing.pack(toy_state(), None, method="auto", rules=["*=trellis=4,unbias=0.1,step=2"])
    assert spelled.data == ruled.data
    direct = packing.pack(toy_state(), None, settings=Settings(trellis=4, unbias=0.1), rules=["*=step=2"])
    assert spelled.data == direct.data


def test_a_sweep_names_its_settings() -> None:
    points = points_of("mine:width=2,mine:width=3,auto", [5000])
    assert [(p.series, p.rules) for p in points] == [
        ("mine:width=2", ("*=width=2",)), ("mine:width=3", ("*=width=3",)), ("auto", ()),
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"^--methods 'auto:width=2': 'width=2' is not a setting"):
        points_of("auto:width=2", [5000])


def test_qat_rounds_to_the_lattice_of_any_method() -> None:
    model = nn.Linear(48, 64, bias=False)
    settings = parse_options("mine,width=.75,start=0")
    assert (settings.grid, settings.start) == ("mine,width=.75", 0.0)
    qat = QAT(model, settings.grid, start=settings.start, rules=["weight=odd=1"])
    assert "mine width=0.75 odd=True, ste" in str(qat)
    trained = model.weight.detach().clone()
    assert qat.step(0.5)
    told = Settings("mine", own=Mine(0.75, True))
    np.testing.assert_array_equal(model.weight.detach().numpy(), quantize(trained, None, told).reconstruct())
    qat.remove()


def test_qat_by_quick_rounds_to_its_steps_and_not_to_whole_numbers() -> None:
    model = nn.Linear(48, 64, bias=False)
    wanted = METHODS["quick"].quantize(model.weight.detach().clone(), None, Settings("quick")).reconstruct()
    assert len(np.unique(wanted)) > 3
    assert QAT(model, "quick", start=0).step(0.5)
    np.testing.assert_array_equal(model.weight.detach().numpy(), wanted)


def test_qat_refuses_a_method_whose_codes_have_no_lattice() -> None:
    def trellised(weight: Tensor, curvature: MatrixCurvature | None, settings: Settings) -> Plane:
        return METHODS["auto"].quantize(weight, curvature, replace(settings, trellis=8))

    register(replace(MINE, quantize=trellised))
    qat = QAT(nn.Linear(48, 64), "mine", start=0)
    with pytest.raises(UsageError, match="QAT has no lattice for method mine"):
        qat.step(0.5)


def tensor(weight: Tensor, *_: object) -> Tensor:
    return weight


def transposed(weight: Tensor, *_: object) -> Plane:
    return Plane(np.zeros(tuple(weight.T.shape), np.int32))


def unrounded(weight: Tensor, *_: object) -> Plane:
    return Plane(weight.numpy())


def short(weight: Tensor, *_: object) -> Plane:
    return Plane(np.zeros(tuple(weight.shape), np.int32), Scale(np.zeros(3, np.int32), HALF))


def crashing(weight: Tensor, *_: object) -> Plane:
    raise IndexError("off by one")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (tensor, r"gave a Tensor instead of a Plane for a matrix \[\d+, 48\]"),
        (transposed, r"gave codes \[48, \d+\] of int32"),
        (unrounded, r"gave codes \[\d+, 48\] of float32"),
        (short, r"gave row_scale \[3\] for a matrix"),
        (crashing, r"failed with IndexError: off by one"),
    ],
)
def test_a_method_that_breaks_its_promise_is_named(broken: Quantize, message: str) -> None:
    register(replace(MINE, quantize=broken))
    with pytest.raises(PluginError, match=f"^method 'mine' {message}"):
        packing.pack({"w": torch.randn(64, 48, generator=generator())}, None, method="mine")


@dataclass(frozen=True)
class Clash:
    trellis: int = 3


@dataclass(frozen=True)
class Bare:
    needed: int


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (replace(MINE, settings=Clash), "its setting trellis is one of pgolf.quant.Settings: read settings.trellis"),
        (replace(MINE, settings=Bare), "missing 1 required positional argument: 'needed'"),
        (replace(MINE, settings=dict), "not a frozen dataclass"),
        (replace(MINE, name="auto"), "method 'auto' is pgolf's own"),
        (replace(MINE, name="m,n"), "a name is a letter"),
    ],
)
def test_methods_that_nobody_could_spell_are_refused(method: Method, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        register(method)


def test_a_function_may_return_the_method() -> None:
    METHODS.register("made", lambda: replace(MINE, name="made"))
    try:
        assert METHODS["made"].description == "a test's own"
        with pytest.raises(UsageError, match="it calls itself 'mine'"):
            METHODS.register("made", lambda: MINE)
    finally:
        METHODS.others.pop("made")
