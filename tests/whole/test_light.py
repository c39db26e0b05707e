"""Without the packages of the extras artifacts load, and whatever needs one of them names the extra in one line."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import pgolf
from pgolf.cli import COMMANDS, main
from pgolf.code.script import self_extracting
from pgolf.common import extras
from pgolf.common.extras import EXTRA_OF
from pgolf.errors import MissingExtraError, PgolfError
from tests.helpers import sweep_inputs, toy_module, toy_state
from tests.light import GOLDEN, REFUSED, WORKS, digest

ROOT = Path(__file__).resolve().parents[2]
GUARDED = {"packer/backends/host.py", "packer/backends/rans_numba.py", "kernels/device.py"}  # do without, not fail


@pytest.fixture
def folder(tmp_path, monkeypatch):
    sweep_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def light(monkeypatch):
    """This process, as if no extra were installed."""
    monkeypatch.setenv("PGOLF_COMPILED", "0")  # the compiled twins may have been imported before
    for package in EXTRA_OF:
        monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize("words", WORKS, ids=" ".join)
def test_works_without_extras(folder, light, words):
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, (result.stderr, result.exception)


@pytest.mark.parametrize(("words", "extra"), REFUSED.items(), ids=[" ".join(words) for words in REFUSED])
def test_a_command_names_the_extra_it_needs(folder, light, words, extra):
    before = sorted(folder.iterdir())
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, result.stdout) == (3, ""), result.exception
    assert re.fullmatch(
        rf"pgolf: this needs [\w, ]+, not installed here: pip install 'pgolf\[{extra}\]'\n", result.stderr
    )
    assert sorted(p for p in folder.iterdir() if p.name != "__pycache__") == before


def test_every_command_is_told_of():
    assert {words[0] for words in (*WORKS, *REFUSED)} == set(COMMANDS) - {"bench"}  # which measures what is there


@pytest.mark.slow
def test_a_fresh_process_loads_without_extras(folder):
    """Nothing of an extra has been imported there before, as it may have been here."""
    for words in (WORKS[0], WORKS[2], next(iter(REFUSED))):
        command = [sys.executable, "-W", "error", "-m", "tests.light", *words]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert done.returncode == (3 if words in REFUSED else 0), done.stderr
        assert len(done.stderr.splitlines()) == (1 if words in REFUSED else 0)


@pytest.mark.parametrize("name", sorted(p.name for p in GOLDEN.glob("*.pgolf")))
def test_the_same_tensors_without_extras(name, request):
    full = digest(GOLDEN / name)
    request.getfixturevalue("light")
    assert digest(GOLDEN / name) == full


def test_modules_load_without_extras(tmp_path, light):
    pgolf.pack(toy_state(), tmp_path / "t.pgolf", method="rtn")
    state = pgolf.load(tmp_path / "t.pgolf")
    one, two = toy_module(toy_state(1)), toy_module(toy_state(2))
    pgolf.load_into(tmp_path / "t.pgolf", one)
    pgolf.load_module(tmp_path / "t.pgolf", two)
    for model in (one, two):
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_library_calls_raise_the_same_error(light):
    with pytest.raises(MissingExtraError, match=r"python_minifier, .*pgolf\[pack\]") as caught:
        self_extracting(b"print(1)")
    assert isinstance(caught.value, PgolfError)
    assert isinstance(caught.value, ModuleNotFoundError)
    with pytest.raises(MissingExtraError, match=r"numba, scipy, .*pgolf\[pack\]"):
        pgolf.pack(toy_state(), None)


def test_what_is_installed_is_not_complained_of():
    extras.need("numba", "scipy")


def test_the_table_is_pyproject():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {
        extra: {re.match(r"[\w-]+", r)[0].replace("-", "_") for r in declared[extra]} - {"pgolf"}
        for extra in ("pack", "train", "gpu", "dask", "hf", "gguf")
    }
    assert {extra: {p for p, e in EXTRA_OF.items() if e == extra} for extra in packages} == packages


def imports(tree):
    """(package, line, outermost statement) of each import of a package of an extra that runs, outside TYPE_CHECKING."""
    for statement in tree.body:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                yield from ((n.split(".")[0], node.lineno, statement) for n in names if n.split(".")[0] in EXTRA_OF)


@pytest.mark.parametrize("file", sorted((ROOT / "pgolf").rglob("*.py")), ids=lambda p: p.stem)
def test_an_extra_is_asked_for_before_it_is_imported(file):
    text = file.read_text()
    if file.relative_to(ROOT / "pgolf").as_posix() in GUARDED:
        return
    for package, line, statement in imports(ast.parse(text)):
        first = 1 if isinstance(statement, ast.Import | ast.ImportFrom) else statement.lineno
        before = "\n".join(text.splitlines()[first - 1 : line - 1])
        assert f'extras.need("{package}")' in before, f"{file}, line {line}: say extras.need({package!r}) first"
