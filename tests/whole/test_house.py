"""The walls of the house: imports go down, none runs in a circle, and the lint notices when one does not."""

import ast
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pgolf"
FACES = {"__init__.py", "__main__.py", "cli.py", "errors.py"}  # what may stand beside the rooms


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(path: Path) -> set[str]:
    """Modules of pgolf that a file imports anywhere in it: at its top, in a function, or for the type checker alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found & MODULES.keys()


def circle_through(graph: dict[str, set[str]]) -> list[str]:
    """A list of modules each of which imports the next, and the last the first; [] where there is none."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return trail[trail.index(name) :]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if circle := visit(other, [*trail, name]):
                return circle
        done.add(name)
        return []

    return next((circle for name in graph if (circle := visit(name, []))), [])


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return {name: imports_of(path) - {name, "pgolf"} for name, path in MODULES.items()}


def test_no_import_runs_in_a_circle(graph):
    assert circle_through(graph) == []


def test_a_checkpoint_on_its_way_down_enters_few_rooms(graph):
    reached, new = set(), {"pgolf.fitting.packing"}
    while new:
        reached |= new
        new = set().union(*(graph[name] for name in new)) - reached
    rooms = {name.split(".")[1] for name in reached} - {"errors"}
    packed = {"fitting", "models", "quant", "packer", "code", "report", "common"}
    assert rooms == packed | {"loading", "scoring", "kernels"}  # what was made is loaded, as users will, and measured


def test_circles_are_found():
    assert circle_through({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle_through({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def late_imports_of(path: Path) -> set[int]:
    """Lines inside functions that import pgolf's own modules."""
    functions = (n for n in ast.walk(ast.parse(path.read_bytes())) if isinstance(n, ast.FunctionDef))
    late = (n for function in functions for n in ast.walk(function) if isinstance(n, ast.ImportFrom))
    return {n.lineno for n in late if (n.module or "").partition(".")[0] == "pgolf"}


def test_a_late_import_says_why():
    """Beyond the commands, which import what they need when they run, and faces, which find a name when it is used."""
    for name, path in MODULES.items():
        if not name.startswith("pgolf.commands") and name not in {"pgolf", "pgolf.cli", "pgolf.train"}:
            lines = path.read_text().splitlines()
            assert [n for n in late_imports_of(path) if "  # " not in lines[n - 1]] == [], path


def test_no_module_lies_loose():
    assert {path.name for path in PACKAGE.glob("*.py")} == FACES


def test_every_room_says_what_it_is():
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_bytes())), path


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    place = tmp_path_factory.mktemp("house")
    shutil.copytree(PACKAGE, place / "pgolf", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    return place


def linted(place: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", program, "--no-cache"]
    return subprocess.run(
        command, cwd=place, capture_output=True, text=True, env={"PYTHONPATH": str(place)}, check=False
    )


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("quant/settings.py", "from pgolf.fitting import search", "An import goes down"),
        ("loading/dense.py", "def late():\n    from pgolf.scoring import bpb", "An import goes down"),
        ("packer/plane.py", "import torch", "without torch"),
        ("report/__init__.py", "def late():\n    import torch", "without torch"),
        ("sweep/points.py", "from pgolf.commands import shared", "An import goes down"),
        ("loose.py", "", "An import goes down"),
    ],
)
def test_a_wrong_import_fails_the_lint(copy, file, line, contract):
    path = copy / "pgolf" / file
    before = path.read_text() if path.exists() else None
    path.write_text(f"{before or ''}\n\n{line}\n")
    try:
        broken = linted(copy)
    finally:
        path.unlink() if before is None else path.write_text(before)
    assert broken.returncode != 0
    lines = (broken.stdout + broken.stderr).splitlines()
    assert any(contract in row and ("BROKEN" in row or "pgolf.loose" in row) for row in lines), lines


def test_the_house_as_it_stands_passes_the_lint(copy):
    passed = linted(copy)
    assert passed.returncode == 0, passed.stdout + passed.stderr


def test_factors_are_made_under_their_lock():
    """On a GPU torch's factorisations take one thread at a time; svd is the trainer's, which has one."""
    for path in (ROOT / "pgolf").rglob("*.py"):
        lines = path.read_text().splitlines()
        for before, line in itertools.pairwise(lines):
            if re.search(r"torch\.linalg\.(cholesky|solve|inv|eig|lu|qr)", line):
                assert "with factoring(" in before, f"{path.name}: {line.strip()}"
