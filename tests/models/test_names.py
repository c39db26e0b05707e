import pytest
import torch
from torch import nn

from pgolf.models import blueprint, names


@pytest.mark.parametrize(
    ("given", "bare"),
    [
        (["module.a", "module.b._orig_mod.c"], ["a", "b.c"]),
        (["_orig_mod.module.a", "_orig_mod.module.b"], ["a", "b"]),
        (["a._fsdp_wrapped_module.b", "c._checkpoint_wrapped_module.d"], ["a.b", "c.d"]),
        (["_forward_module.module._orig_mod.a"], ["a"]),
        (["module.a", "n_averaged"], ["a", "n_averaged"]),
        (["module.a", "b"], ["module.a", "b"]),
        (["module", "module.a"], ["module", "module.a"]),
        (["model.a", "model.b"], ["model.a", "model.b"]),
        (["a", "_orig_mod.a"], ["a", "_orig_mod.a"]),
        (["_orig_mod"], ["_orig_mod"]),
        ([], []),
    ],
)
def test_what_wrappers_put_into_names_goes_where_that_is_safe(given, bare):
    assert names.unwrapped(given) == dict(zip(given, bare, strict=True))


def test_lightnings_front_goes_where_it_is_known_to_be_one():
    assert names.unwrapped(["model.net.a"], (*names.PARALLEL, *names.LIGHTNING)) == {"model.net.a": "a"}
    assert names.unwrapped(["layers.0", "layers.1"], names.LIGHTNING) == {
        "layers.0": "layers.0",
        "layers.1": "layers.1",
    }


@pytest.mark.parametrize("given", ["a.b", "model.a.b", "x.y.a.b", "module.model._orig_mod.a.b", "a.module.b"])
def test_a_modules_names_decide(given):
    assert names.fitted([given], ["a.b"]) == {given: "a.b"}


def test_the_least_change_wins_and_a_front_may_be_added():
    assert names.fitted(["module.a"], ["module.a", "a"]) == {"module.a": "module.a"}
    assert names.fitted(["a", "b"], ["model.a", "model.b"]) == {"a": "model.a", "b": "model.b"}


def test_what_was_taken_is_said():
    assert names.stripped({"module._orig_mod.a": "a", "b": "b"}) == ["module._orig_mod."]
    assert names.stripped({"blocks._orig_mod.a": "blocks.a"}) == ["_orig_mod."]


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.register_buffer("table", torch.zeros(2))
        self.again = self.module


def test_a_blueprint_knows_buffers_ties_and_real_names():
    found = blueprint.of(nn.DataParallel(Odd()))
    assert found.kind == "Odd"
    assert found.full["module.weight"] == "module.module.weight"
    assert found.buffers == {"table"}
    assert found.ties == {"again.weight": "module.weight", "again.bias": "module.bias"}
    given = {"module.weight": torch.ones(2, 2), "again.bias": torch.ones(2), "table": torch.ones(2)}
    assert not found.problems(given)
    assert found.completed(given).keys() == found.full.keys()
    assert "missing table" in found.problems({n: t for n, t in given.items() if n != "table"})
