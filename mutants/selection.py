"""Which test to ask first about a fault: those that run its line, the quickest first.

What will surprise you: nothing is left out, the others follow. coverage.py sees neither compiled loops nor the stub in a
process of its own, so a line that no test seems to run may be run by any.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import coverage
import pytest


@dataclass(frozen=True)
class Honest:
    """What a module's tests do without any fault. seconds: of each test; tests: those that run a line, by line."""

    seconds: dict[str, float]
    tests: dict[int, list[str]]

    def order(self, line: int) -> list[str]:
        """All tests in the order in which to ask them about a fault in `line`; coverage.py may count it to a line above."""
        lines = sorted(self.tests)
        at = bisect_right(lines, line)
        near = set(self.tests[lines[at - 1]]) if at else set()
        return sorted(self.seconds, key=lambda test: (test not in near, self.seconds[test]))

    @staticmethod
    def read(path: Path) -> Honest:
        """What `Recorder.write` wrote."""
        found = json.loads(path.read_text())
        return Honest(found["seconds"], {int(line): tests for line, tests in found["tests"].items()})


class Recorder:
    """A pytest plugin that measures which tests run each line of `source`, and for how long."""

    def __init__(self, source: Path) -> None:
        self.source, self.seconds = str(source), dict[str, float]()
        self._coverage = coverage.Coverage(data_file=None, include=[self.source], config_file=False)

    def pytest_sessionstart(self) -> None:
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._coverage.switch_context(item.nodeid)
        began = time.perf_counter()
        result = yield
        self.seconds[item.nodeid] = time.perf_counter() - began
        return result

    def write(self, path: Path) -> None:
        """Keep what was measured in `path`."""
        self._coverage.stop()
        lines = self._coverage.get_data().contexts_by_lineno(self.source)
        tests = {line: [test for test in names if test] for line, names in lines.items()}
        path.write_text(json.dumps({"seconds": self.seconds, "tests": {n: t for n, t in tests.items() if t}}))


class Ordered:
    """A pytest plugin that runs `tests` in their order."""

    def __init__(self, tests: list[str]) -> None:
        self.rank = {test: place for place, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.rank.get(item.nodeid, len(self.rank)))
