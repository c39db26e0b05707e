"""What submission.json claims, held against the files of the folder and against the logs of the runs."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pgolf.submission.count import DESCRIPTION
from pgolf.submission.findings import Finding

TOTALS = {"bytes_total", "artifact_bytes", "total_bytes", "submission_bytes"}
_SCORE = re.compile(r"([\w ()+-]*?)(val_bpb|val_loss)['\"]?\s*[:=]+\s*([0-9]+\.[0-9]+)")
_SIZE = re.compile(r"[Tt]otal submission(?: size)?[^:\n]*:\s*([0-9][0-9,]*)\s*(?:bytes|B)\b")


@dataclass(frozen=True)
class Logs:
    """What logs say. scores: key -> label -> its last value in each log that has it; sizes: totals in bytes. count: of logs."""

    scores: Mapping[str, Mapping[str, list[float]]]
    every: Mapping[str, set[float]]
    sizes: set[int]
    count: int


def read_logs(texts: Mapping[str, str]) -> Logs:
    """The scores and sizes that logs print, whatever stands before them on the line taken for the label."""
    scores: dict[str, dict[str, list[float]]] = {"val_bpb": defaultdict(list), "val_loss": defaultdict(list)}
    every: dict[str, set[float]] = {"val_bpb": set(), "val_loss": set()}
    sizes: set[int] = set()
    for text in texts.values():
        last: dict[tuple[str, str], float] = {}
        for line in text.splitlines():
            label = re.sub(r"[\d.:/]+", "", line.partition("val_")[0]).strip()
            for _, key, number in _SCORE.findall(line):
                last[key, label] = float(number)
                every[key].add(float(number))
        for (key, label), value in last.items():
            scores[key][label].append(value)
        sizes |= {int(number.replace(",", "")) for number in _SIZE.findall(text)}
    return Logs(scores, every, sizes, sum(bool(_SCORE.search(text)) for text in texts.values()))


def check_claims(raw: bytes, logs: Logs, code: int, main: str, cap: int) -> list[Finding]:
    """Findings on a description `raw`; code: bytes of the main script."""
    try:
        facts = json.loads(raw)
    except ValueError as error:
        return [Finding(DESCRIPTION, 0, "claim", f"no JSON ({error})")]
    if not isinstance(facts, dict):
        return [Finding(DESCRIPTION, 0, "claim", "no JSON object")]
    lines = _Lines(raw.decode("utf-8", "replace"))
    found = [
        Finding(DESCRIPTION, lines.of(key, value), kind, text)
        for key, value, kind, text in _sizes(facts, logs, code, main, cap)
    ]
    for key in ("val_bpb", "val_loss"):
        value = facts.get(key)
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (text := _unbacked(key, float(value), logs))
        ):
            found.append(Finding(DESCRIPTION, lines.of(key, value), "claim", text))
    return found


def _sizes(facts: Mapping[str, Any], logs: Logs, code: int, main: str, cap: int) -> Iterator[tuple[str, Any, str, str]]:
    for key, value in _numbers(facts):
        if key in TOTALS and value > cap:
            yield key, value, "size", f"{value:,.0f} B are over the cap of {cap:,} B"
    said, total = facts.get("bytes_code"), facts.get("bytes_total")
    if isinstance(said, int) and said < code:
        yield "bytes_code", said, "claim", f"{said:,} B of code are claimed, and {main} alone has {code:,} B"
    if isinstance(total, int) and logs.sizes and total not in logs.sizes:
        nearest = min(logs.sizes, key=lambda size: abs(size - total))
        yield "bytes_total", total, "claim", f"{total:,} B are claimed, the nearest in the logs is {nearest:,} B"


def _numbers(facts: Any) -> Iterator[tuple[str, float]]:
    """(key, number) of everything in a description, at any depth."""
    if isinstance(facts, dict):
        for key, value in facts.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield key, value
            yield from _numbers(value)
    elif isinstance(facts, list):
        for value in facts:
            yield from _numbers(value)


def _unbacked(key: str, value: float, logs: Logs) -> str:
    """Why a claimed score does not follow from the logs; "" if it does.

    It follows if, rounded or cut to its own decimals, it is a value of a log, or the mean over logs of the last values under
    one label.
    """
    if not logs.count:
        return f"{key} {value} is claimed, and no log is here that shows it"
    digits = len(repr(value).partition(".")[2]) if "e" not in repr(value) else 8
    step = 10.0**-digits
    known = logs.every[key]
    means = [math.fsum(values) / len(values) for values in logs.scores[key].values() if len(values) > 1]
    if any(abs(one - value) < step * 1.001 for one in [*known, *means]):
        return ""
    if not known:
        return f"{key} {value} is claimed, and no log shows a {key}"
    nearest = min([*known, *means], key=lambda one: abs(one - value))
    return f"{key} {value} is claimed, the nearest in {logs.count} logs is {nearest:.8g}"


class _Lines:
    """Where a key stands in a text of JSON."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()

    def of(self, key: str, value: object) -> int:
        """The line that has the key and its value, or else the key; 0 if none has."""
        having = [n for n, line in enumerate(self.lines, 1) if f'"{key}"' in line]
        exact = [n for n in having if json.dumps(value) in self.lines[n - 1]]
        return (exact or having or [0])[0]
