"""What trainers pickle beside the weights, or around them: settings of any class, states, whole modules. Nothing of it is
imported or run, and the weights come back."""

import argparse
import collections
import datetime
import decimal
import enum
import pathlib
import types
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn.utils import prune

import pgolf
from pgolf.cli import main
from pgolf.models import checkpoint
from tests.zoo.animals import made, plain, renamed

STATE = plain()
RAN: list[str] = []


class Attributes(dict[str, Any]):
    """As Lightning, mmengine and EasyDict have them."""

    __getattr__ = dict.get


class Ordered(OrderedDict[str, Any]):
    pass


class Values(list[Any]):
    pass


class Phase(enum.Enum):
    WARM = 1


@dataclass
class Config:
    width: int = 48
    more: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainState:
    model: dict[str, torch.Tensor]
    step: int = 7


class Slotted:
    __slots__ = ("lr",)

    def __init__(self) -> None:
        self.lr = 0.1


class Runs:
    """Tells when its code is run: at its making, and when its state is set."""

    def __init__(self) -> None:
        self.lr = 0.1

    def __setstate__(self, state: Any) -> None:
        RAN.append("set")

    def __new__(cls) -> "Runs":
        RAN.append("made")
        return super().__new__(cls)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def packed(value, *options, modern=True):
    """(loaded state dict, what was said)."""
    torch.save(value, "c.pt", _use_new_zipfile_serialization=modern)
    result = CliRunner().invoke(
        main, ["pack", "c.pt", "--calib", "none", "--budget", "70kB", "-o", "o.pgolf", "--force", *options]
    )
    assert result.exit_code == 0, (result.stderr, result.exception)
    return pgolf.load("o.pgolf"), result.output


def holds(loaded, state):
    assert loaded.keys() == state.keys()
    assert all((loaded[name] - state[name]).norm() <= 2e-3 * state[name].norm() for name in state)


BESIDE = {
    "argparse": lambda: {"args": argparse.Namespace(lr=1, betas=(0.9, 0.95))},
    "simple namespace": lambda: {"hp": types.SimpleNamespace(lr=1)},
    "dataclass": lambda: {"config": Config(more={"a": Phase.WARM})},
    "paths and times": lambda: {
        "out": pathlib.PosixPath("/x"),
        "at": datetime.datetime(2026, 1, 1),
        "d": decimal.Decimal(1),
    },
    "dict subclass": lambda: {"hyper_parameters": Attributes(lr=1, inner=Attributes(a=[1]))},
    "defaultdict": lambda: {"seen": collections.defaultdict(list, {"a": [1]})},
    "list and deque": lambda: {"a": Values([1, 2]), "b": collections.deque([1, 2], maxlen=4)},
    "builtins": lambda: {"a": frozenset({1}), "b": range(3), "c": slice(1, 2), "d": ..., "e": {1, 2}, "f": 1j},
    "slots": lambda: {"s": Slotted()},
    "a class": lambda: {"cls": Config},
    "an optimizer itself": lambda: {"optimizer": torch.optim.AdamW(made().parameters())},
}


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("kind", BESIDE)
def test_settings_of_any_class_lie_beside_a_model(kind, modern, folder):
    loaded, _ = packed({"model": STATE, **BESIDE[kind]()}, modern=modern)
    holds(loaded, STATE)


AROUND = {
    "an ordered dict of one's own": lambda: Ordered(STATE),
    "a dict of one's own": lambda: Attributes(model=Attributes(STATE), step=3),
    "a training state": lambda: TrainState(STATE),
    "an object in a dict": lambda: {"state": TrainState(STATE), "epoch": 1},
    "a namespace": lambda: argparse.Namespace(net=STATE, lr=0.1),
}


@pytest.mark.parametrize("kind", AROUND)
def test_weights_are_found_in_an_object(kind, folder):
    loaded, _ = packed(AROUND[kind]())
    holds(loaded, STATE)


def test_two_models_in_objects_are_not_one_too_many(folder):
    torch.save({"a": TrainState(STATE), "b": TrainState(plain(seed=1))}, "c.pt")
    said = CliRunner().invoke(main, ["pack", "c.pt"])
    assert said.exit_code == 3
    assert "say which to take: --state a.model or --state b.model" in said.stderr
    loaded, _ = packed({"a": TrainState(STATE), "b": TrainState(plain(seed=1))}, "--state", "b.model")
    holds(loaded, plain(seed=1))


# ---- whole modules


class Deep(nn.Module):
    """Tied, with buffers of both kinds, a parameter of its own, one that is None, and a part that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(64, 48), nn.Linear(48, 64, bias=False)
        self.head.weight = self.table.weight
        self.parts = nn.ModuleList([nn.Linear(48, 48), nn.TransformerEncoderLayer(48, 2, 64)])
        self.again = self.parts[0]
        self.gains = nn.ParameterDict({"a": nn.Parameter(torch.randn(48))})
        self.register_buffer("mask", torch.ones(4, 4).tril())
        self.register_buffer("cache", torch.ones(9), persistent=False)
        self.register_parameter("nothing", None)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "step": 1}, nn.DataParallel])
def test_a_whole_module_is_its_state_dict(wrap, folder):
    module = Deep()
    loaded, _ = packed(wrap(module))
    holds(loaded, module.state_dict())
    assert loaded["head.weight"].data_ptr() == loaded["table.weight"].data_ptr()


def test_a_pruned_module_is_what_it_was_pruned_from(folder):
    module = nn.Linear(64, 64)
    prune.l1_unstructured(module, "weight", 0.5)
    loaded, _ = packed(module)
    holds(loaded, module.state_dict())
    assert loaded.keys() == {"bias", "weight_orig", "weight_mask"}


def test_every_tensor_of_a_whole_module_is_kept_too(folder):
    torch.save({"model": Deep(), "codes": torch.arange(9)}, "c.pt")
    found = checkpoint.read("c.pt", everything=True)
    assert {"codes", "model.table.weight", "model.parts.1.linear1.weight"} <= found.state_dict().keys()


def test_an_average_that_is_a_module(folder):
    torch.save({"model": STATE, "ema": Deep()}, "c.pt")
    said = CliRunner().invoke(main, ["pack", "c.pt"])
    assert said.exit_code == 3
    assert "--state model or --state ema" in said.stderr


# ---- what is still refused


def test_no_code_of_the_file_is_run(folder):
    value = {"model": STATE, "x": Runs()}
    RAN.clear()
    loaded, _ = packed(value)
    assert not RAN
    holds(loaded, STATE)


class Function:
    """Asks for a function to be called."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Mine(torch.Tensor):
    pass


REFUSED = {
    "a function": (lambda: {"model": STATE, "f": len}, "len"),
    "a call": (lambda: {"model": STATE, "f": Function(exec, "1")}, "exec"),
    "a tensor of one's own class": (lambda: {**STATE, "x": torch.ones(3).as_subclass(Mine)}, "Mine"),
    "renamed weights behind a call": (lambda: Function(renamed, STATE, "a."), "renamed"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_only_running_would_tell(kind, folder):
    make, name = REFUSED[kind]
    torch.save(make(), "c.pt")
    said = CliRunner().invoke(main, ["pack", "c.pt"])
    assert said.exit_code == 3
    assert said.stderr.count("\n") == 1
    assert f"{name}, which pgolf will not run" in said.stderr
