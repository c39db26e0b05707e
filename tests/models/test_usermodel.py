import pytest
import torch

from pgolf.errors import ModelError, UsageError
from pgolf.models import names, usermodel
from pgolf.train.model import rebuild
from tests.helpers import TOY_MODEL, toy_state


@pytest.fixture
def model_file(tmp_path):
    (tmp_path / "toy.py").write_text(TOY_MODEL)
    return tmp_path / "toy.py"


def test_a_class_is_built_and_filled(model_file):
    state = toy_state()
    model = usermodel.load(f"{model_file}:Toy", state)
    assert not model.training
    assert torch.equal(model.up.weight, state["up.weight"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrapper_prefixes_do_not_matter(model_file, prefix):
    state = toy_state()
    model = usermodel.load(f"{model_file}:Toy", {prefix + name: t for name, t in state.items()})
    assert torch.equal(model.gain, state["gain"])


def test_wrong_weights_are_named(model_file):
    state = toy_state()
    state["extra"] = state.pop("gain")
    state["up.weight"] = torch.zeros(2, 2)
    with pytest.raises(
        ModelError, match=r"missing gain; unexpected extra; up\.weight is \[2, 2\] and should be \[96, 48\]"
    ):
        usermodel.load(f"{model_file}:Toy", state)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "building it fails .RuntimeError: no such thing"),
        ("Nothing", "no class or function 'Nothing' in it; modules there: Toy"),
        ("not_a_module", "no class or function"),
        ("torch.nn", "no class or function"),
    ],
)
def test_names_that_make_no_module(model_file, name, message):
    with pytest.raises(ModelError, match=message):
        usermodel.load(f"{model_file}:{name}")


def test_files_that_cannot_be_run(tmp_path):
    (tmp_path / "bad.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(ModelError, match="importing it fails"):
        usermodel.load(f"{tmp_path / 'bad.py'}:X")
    with pytest.raises(ModelError, match="no such file"):
        usermodel.load(f"{tmp_path / 'none.py'}:X")
    with pytest.raises(UsageError, match=r"FILE\.py:NAME"):
        usermodel.load("model.py")


def test_a_neighbour_may_be_imported(tmp_path):
    (tmp_path / "part_of_it.py").write_text(TOY_MODEL)
    (tmp_path / "whole.py").write_text("from part_of_it import Toy\ndef build():\n    return Toy(32)\n")
    assert usermodel.load(f"{tmp_path / 'whole.py'}:build").gain.shape == (32,)


def test_configurations_of_others_are_refused():
    with pytest.raises(ModelError, match="--model"):
        rebuild.from_config({"arch": "theirs"}, {})
    with pytest.raises(ModelError, match="does not make a model"):
        rebuild.from_config({"arch": "pgolf.train.model:GPT", "gpt": {"wat": 1}}, {})


def test_names_of_compiled_parts_and_averaged_models_fit(model_file):
    state = toy_state()
    compiled = {name.replace("up.", "up._orig_mod."): t for name, t in state.items()}
    averaged = {f"module.{name}": t for name, t in state.items()} | {"n_averaged": torch.tensor(3)}
    for given in (compiled, averaged):
        assert torch.equal(usermodel.load(f"{model_file}:Toy", given).up.weight, state["up.weight"])
    assert names.unwrapped(["module.a", "module.b._orig_mod.c"]) == {
        "module.a": "a", "module.b._orig_mod.c": "b.c"
    }  # fmt: skip
    assert names.unwrapped(["module.a", "b"]) == {"module.a": "module.a", "b": "b"}
