"""Which machine a step of gpu.py runs on, or what it lacks; and what a run of the tests came to. JSON on stdout.

python benchmarks/gpu_machine.py --device cuda | --tests JUNIT.xml
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import machine
from pgolf.common.extras import EXTRA_OF
from pgolf.errors import PgolfError

READERS = ("torch", "numpy", "safetensors", "brotli", "zstandard", "click", "rich", "jinja2", "pytest", "hypothesis")
UNUSED = {"distributed", "matplotlib", "transformers", "tokenizers", "gguf"}  # by any step


def tests(report: Path) -> dict[str, object]:
    """Counts of a JUnit file, and the names of what failed."""
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    bad = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    return counts | {"seconds": float(suite.get("time", 0)), "failed": bad}


def unusable(name: str) -> str:
    """A package that cannot be imported, and why if it is there: one that wants another numpy should end no later step."""
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        return name if error.name == name else f"{name} ({error})"
    except ImportError as error:
        return f"{name} ({str(error).splitlines()[0]})"
    return ""


def here(device: str) -> dict[str, object]:
    """`machine()`, if the device and every package are there and can be imported. Raises PgolfError."""
    bad = [word for name in (*READERS, *EXTRA_OF) if name not in UNUSED and (word := unusable(name))]
    if bad:
        raise PgolfError(f"packages are missing: {', '.join(bad)}: bring wheels along (gpu_carry.py)")
    from pgolf.kernels.device import need

    need(device)
    return machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tests", type=Path)
    options = parser.parse_args()
    try:
        found = tests(options.tests) if options.tests else here(options.device)
        print(json.dumps(found))
        if found.get("failures") or found.get("errors"):
            raise PgolfError(f"{found['failures']} tests fail, {found['errors']} have errors: {found['failed']}")
    except PgolfError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
