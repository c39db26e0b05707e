"""Which machine a step of gpu.py runs on, or what it lacks; and what a run of the tests came to. JSON on stdout.

python benchmarks/gpu_machine.py --device cuda | --tests JUNIT.xml
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import machine
from pgolf.common.extras import EXTRA_OF
from pgolf.errors import PgolfError

READERS = ("torch", "numpy", "safetensors", "brotli", "zstandard", "click", "rich", "jinja2", "pytest", "hypothesis")
OPTIONAL = {"distributed", "matplotlib"}  # no step needs them, or needs them badly


def tests(report: Path) -> dict[str, object]:
    """Counts of a JUnit file, and the names of what failed."""
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    bad = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    return counts | {"seconds": float(suite.get("time", 0)), "failed": bad}


def here(device: str) -> dict[str, object]:
    """`machine()`, if the device and every package are there. Raises PgolfError."""
    missing = [name for name in (*READERS, *EXTRA_OF) if name not in OPTIONAL and find_spec(name) is None]
    if missing:
        raise PgolfError(f"packages are missing: {', '.join(missing)}: bring wheels along (gpu_carry.py)")
    from pgolf.kernels.device import need

    need(device)
    return machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tests", type=Path)
    options = parser.parse_args()
    try:
        print(json.dumps(tests(options.tests) if options.tests else here(options.device)))
    except PgolfError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
