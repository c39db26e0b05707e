"""What a machine with a GPU and no network must be brought: the text in the contest's tokens, and wheels. 64 MiB at most.

python benchmarks/gpu_carry.py [FOLDER]                 fill FOLDER (.gpu/carry); needs ../shared and pip
python benchmarks/gpu_carry.py --text FOLDER WORK       text from FOLDER, else from ../shared, into WORK
python benchmarks/gpu_carry.py --rename DATA WORK       the same from a folder of `pgolf tokenize`
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_steps import HERE, ROOT, SHARED, TEXT

TOKENIZER = SHARED / "tokenizers" / "fineweb_8192_bpe.model"
PACKAGES = ("brotli", "zstandard", "python-minifier")  # that the machine lacks: its list of packages has none of them
RIVALS = ("gemlite",)  # for one comparison; without versions in constraints.txt, and only as source
PYTHON, PLATFORMS = "3.12", ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def text(carry: Path, work: Path) -> None:
    """train.bin, val.bin and tokenizer.model in `work`."""
    if all((carry / name).exists() for name in TEXT):
        for name in TEXT:
            shutil.copyfile(carry / name, work / name)
        return
    if not SHARED.is_dir():
        sys.exit(f"no text: neither {carry} nor {SHARED} has it (gpu_carry.py fills the first from the second)")
    script = [sys.executable, str(HERE / "retokenize.py"), "--shared", str(SHARED), "--tokenizer", str(TOKENIZER)]
    subprocess.run([*script, "--out", str(work)], check=True)
    shutil.copyfile(TOKENIZER, work / "tokenizer.model")


def wheels(folder: Path) -> None:
    """PACKAGES in their pinned versions for the GPU's machine, and RIVALS, which are all Python."""
    pins = ("-c", str(ROOT / "constraints.txt"))
    where = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    how = ("--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *where)
    download = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *pins, *how)
    subprocess.run([*download, "-d", str(folder), *PACKAGES], check=True)
    wheel = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps")
    if subprocess.run([*wheel, "-w", str(folder), *RIVALS], check=False).returncode:
        print(f"no {', '.join(RIVALS)}: they will be missing in the comparison", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / ".gpu" / "carry")
    parser.add_argument("--text", nargs=2, type=Path, metavar=("FOLDER", "WORK"))
    parser.add_argument("--rename", nargs=2, type=Path, metavar=("DATA", "WORK"))
    options = parser.parse_args()
    if options.text:
        text(*options.text)
    elif options.rename:
        data, work = options.rename
        for old, new in zip(("train_000000.bin", "val_000000.bin", "tokenizer.model"), TEXT, strict=True):
            shutil.copyfile(data / old, work / new)
    else:
        options.folder.mkdir(parents=True, exist_ok=True)
        text(options.folder, options.folder)
        wheels(options.folder / "wheels")
        size = sum(path.stat().st_size for path in options.folder.rglob("*") if path.is_file())
        print(f"{size / 2**20:.1f} MiB in {options.folder}")


if __name__ == "__main__":
    main()
