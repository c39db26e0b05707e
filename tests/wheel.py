"""Build the wheel, install it into a fresh environment, and test what was installed: `make wheel`.

    python -m tests.wheel [FOLDER]

What will surprise you:
* The fresh environment borrows the libraries of the one that runs this, by a path file: no second torch is fetched. That
  path is read after its own packages, so `pgolf` is the wheel's, and the checkout is nowhere on the path.
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
from email import message_from_bytes
from pathlib import Path

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
    """The interpreter of a fresh environment with the wheel in it."""
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
    libraries = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (Path(target) / "borrowed.pth").write_text("\n".join(libraries) + "\n")
    return python


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
