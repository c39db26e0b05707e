"""Old import paths: each fails with one line that names modules which import, or goes on working."""

import subprocess
import sys
from importlib import import_module

import pytest

import pgolf
from pgolf.common.moved import MOVED

STILL = {  # modules that became packages: the names that people imported from them
    "pgolf.quant.curvature": ["Curvature", "MatrixCurvature"],
    "pgolf.quant.settings": ["Settings"],
    "pgolf.train.loop": ["StepInfo", "Trainer"],
    "pgolf.train.model": ["GPT", "GPTConfig"],
    "pgolf.train.qat": ["QAT"],
}


@pytest.mark.parametrize("old", MOVED)
def test_a_moved_module_says_where_it_is(old):
    with pytest.raises(ModuleNotFoundError) as caught:
        import_module(old)
    assert str(caught.value) == f"{old} is now {' and '.join(MOVED[old])}"
    package, _, name = old.rpartition(".")
    with pytest.raises(ModuleNotFoundError, match=f"{old} is now "):
        exec(f"from {package} import {name}")
    for new in MOVED[old]:
        import_module(new)


@pytest.mark.parametrize(("module", "names"), STILL.items())
def test_names_of_modules_that_became_packages(module, names):
    for name in names:
        exec(f"from {module} import {name}")
    with pytest.raises(AttributeError, match="fish"):
        import_module(module).fish  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match="No module named"):
        import_module(f"{module}.fish")


def test_what_never_was_is_not_found_as_ever():
    with pytest.raises(ModuleNotFoundError, match="No module named"):
        import_module("pgolf.fish")
    with pytest.raises(ImportError, match="cannot import name 'fish'"):
        exec("from pgolf import fish")
    assert not hasattr(pgolf, "pipeline")


def test_looking_into_the_packages_imports_no_torch():
    packages = ", ".join(module for module in STILL if module.startswith("pgolf.train"))
    program = f"import sys, {packages}; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
    )


def test_an_old_folder_of_caches_is_not_taken_for_the_package(tmp_path, monkeypatch):
    (tmp_path / "frontier" / "__pycache__").mkdir(parents=True)
    monkeypatch.setattr(pgolf, "__path__", [*pgolf.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match=r"pgolf\.frontier is now "):
        import_module("pgolf.frontier.run")
