"""Build the wheel, install it into a fresh environment, and test what was installed: `make wheel`.

    python -m tests.wheel [FOLDER]

What will surprise you:
* The fresh environment borrows the libraries of the one that runs this, by a path file: no second torch is fetched. That
  path is read after its own packages, so `pgolf` is the wheel's, and the checkout is nowhere on the path.
* A second one has links to what the wheel requires without extras, and to what that requires, one by one: nothing else is there.
* The tests that run are copies in a folder without pgolf/, those of what ships data or starts programs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers import sweep_inputs
from tests.light import GOLDEN, REFUSED, WORKS

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("commands/test_cli", "packer/test_golden", "packer/test_boundary", "code/test_stub")
COPIED = ("tests", "fuzz", "pyproject.toml")
OUTSIDE = {
    name: value for name, value in os.environ.items() if name != "PYTHONPATH"
}  # there pip would find the checkout


def main(folder: Path) -> None:
    """Raises CalledProcessError or AssertionError for what is wrong with the wheel."""
    wheel = build(folder / "dist")
    check_contents(wheel)
    python = installed(wheel, folder / "venv")
    check_program(python, folder)
    check_tests(python, folder / "outside")
    check_light(light(wheel, folder / "venv-light"), folder / "light")
    print(f"{wheel.name}: {wheel.stat().st_size} bytes, whole and working")


def build(dist: Path) -> Path:
    """The wheel of the checkout."""
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools would put files in that are long gone
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", dist, ROOT], check=True)
    return next(dist.glob("*.whl"))


def check_contents(wheel: Path) -> None:
    """Every file of pgolf/ is in it, nothing else is, and it says what pyproject.toml says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = next(name.rpartition("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(f"{about}/METADATA"))
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "pgolf").rglob("*") if p.is_file()}
    shipped = {name for name in names if not name.startswith(about)}
    assert shipped == {name for name in files if "__pycache__" not in name}, shipped ^ files
    assert f"{about}/licenses/LICENSE" in names
    required = [r for r in metadata.get_all("Requires-Dist") or [] if "extra ==" not in r]
    assert sorted(required) == sorted(project["dependencies"]), required
    assert (metadata["Name"], metadata["Version"]) == (project["name"], project["version"])


def installed(wheel: Path, place: Path) -> Path:
    """The interpreter of a fresh environment with the wheel in it, and all libraries of this one."""
    python, packages = bare(wheel, place)
    libraries = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (packages / "borrowed.pth").write_text("\n".join(libraries) + "\n")
    return python


def light(wheel: Path, place: Path) -> Path:
    """The interpreter of a fresh environment with the wheel in it, and only what it requires without extras."""
    python, packages = bare(wheel, place)
    for found in required(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]):
        for name in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            link = packages / name
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(name))).resolve())
    return python


def required(requirements: Iterable[str]) -> Iterable[Distribution]:
    """The installed packages that meet `requirements`, and all that those require."""
    found: dict[str, Distribution] = {}
    todo = [Requirement(text) for text in requirements]
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if name not in found and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            found[name] = distribution(name)
            todo += [Requirement(text) for text in found[name].requires or []]
    return found.values()


def bare(wheel: Path, place: Path) -> tuple[Path, Path]:
    """The interpreter of a fresh environment with the wheel and nothing else in it, and the folder of its packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    python = place / "bin" / "python"
    target = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", wheel], check=True, env=OUTSIDE)
    return python, Path(target)


def check_light(python: Path, folder: Path) -> None:
    """Without extras every golden artifact gives the same tensors, and a command that needs an extra says which."""
    folder.mkdir()
    sweep_inputs(folder)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "light.py", folder / "tests")
    digests = ["-m", "tests.light", "--digest", *map(str, sorted(GOLDEN.glob("*.pgolf")))]
    here, there = run(sys.executable, digests, ROOT), run(python, digests, folder)
    assert here.stdout, here.stderr
    assert there.stdout == here.stdout, there.stderr
    for words in (*WORKS, *REFUSED):
        done = run(python.with_name("pgolf"), words, folder)
        said = f"not installed here: pip install 'pgolf[{REFUSED[words]}]'\n" if words in REFUSED else ""
        assert done.returncode == (3 if words in REFUSED else 0), (words, done.stderr)
        assert done.stderr.endswith(said), (words, done.stderr)
        assert done.stderr.count("\n") == (words in REFUSED), (words, done.stderr)


def run(program: str | Path, words: Iterable[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """What a program said and how it ended, run in `folder`."""
    return subprocess.run([program, *words], cwd=folder, check=False, capture_output=True, text=True, env=OUTSIDE)


def check_program(python: Path, folder: Path) -> None:
    """`pgolf` starts, and packs and unpacks a checkpoint, outside the checkout."""
    pgolf = python.with_name("pgolf")
    place = (
        "import pgolf, torch; print(pgolf.__file__); torch.save({'w': torch.arange(4096.).sin().view(64, 64)}, 'c.pt')"
    )
    for command in (
        [pgolf, "--help"],
        [python, "-c", place],
        [pgolf, "pack", "c.pt", "--budget", "3kB", "--calib", "none"],
        [pgolf, "unpack", "c.pgolf", "-o", "c.safetensors"],
    ):
        out = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True, env=OUTSIDE).stdout
        if command[1] == "-c":
            assert Path(out.strip()).is_relative_to(python.parents[1]), f"pgolf was imported from {out.strip()}"
    assert (folder / "c.safetensors").stat().st_size > 4 * 4096


def check_tests(python: Path, outside: Path) -> None:
    """The copied tests pass against the wheel."""
    outside.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, outside / name)
    files = [f"tests/{name}.py" for name in TESTS]
    subprocess.run([python, "-m", "pytest", *files], cwd=outside, check=True, env=OUTSIDE)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
