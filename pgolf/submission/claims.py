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
KEYS = ("val_bpb", "val_loss")
_SCORE = re.compile(r"(val_bpb|val_loss)['\"]?\s*[:=]+\s*([0-9]+\.[0-9]+)")
_SIZE = re.compile(r"([Tt]otal submission[^:\n]*):\s*([0-9][0-9,]*)\s*(?:bytes|B)\b")


@dataclass(frozen=True)
class Logs:
    """What logs print. scores: key -> label -> the last number under it in each log, as text; every: key -> all of them; sizes:
    label -> the last total in bytes of each log. count: of logs that print scores."""

    scores: Mapping[str, Mapping[str, list[str]]]
    every: Mapping[str, set[str]]
    sizes: Mapping[str, list[int]]
    count: int


def read_logs(texts: Mapping[str, str]) -> Logs:
    """The scores and sizes that logs print; what stands before a score on its line is its label."""
    scores: dict[str, dict[str, list[str]]] = {key: defaultdict(list) for key in KEYS}
    every: dict[str, set[str]] = {key: set() for key in KEYS}
    sizes: dict[str, list[int]] = defaultdict(list)
    for text in texts.values():
        last: dict[tuple[str, str], str] = {}
        for line in text.splitlines():
            label = re.sub(r"[\d.:/]+", "", line.partition("val_")[0]).strip()
            for key, number in _SCORE.findall(line):
                last[key, label] = number
                every[key].add(number)
        for (key, label), number in last.items():
            scores[key][label].append(number)
        for label, number in {label: number for label, number in _SIZE.findall(text)}.items():
            sizes[label].append(int(number.replace(",", "")))
    return Logs(scores, every, sizes, sum(bool(_SCORE.search(text)) for text in texts.values()))


def check_claims(raw: bytes, logs: Logs, code: int, main: str, cap: int) -> list[Finding]:
    """Findings on a description `raw`; code: bytes of the script `main`."""
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
    for key in KEYS:
        value = facts.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and (text := _unbacked(facts, key, logs)):
            found.append(Finding(DESCRIPTION, lines.of(key, value), "claim", text))
    return found


def _sizes(facts: Mapping[str, Any], logs: Logs, code: int, main: str, cap: int) -> Iterator[tuple[str, Any, str, str]]:
    for key, value in _numbers(facts):
        if key in TOTALS and value > cap:
            yield key, value, "size", f"{value:,.0f} B are over the cap of {cap:,} B"
    said, total = facts.get("bytes_code"), facts.get("bytes_total")
    if isinstance(said, int) and said < code:
        yield "bytes_code", said, "claim", f"{said:,} B of code are claimed, and {main} alone has {code:,} B"
    known = {size for sizes in logs.sizes.values() for size in [*sizes, round(math.fsum(sizes) / len(sizes))]}
    if isinstance(total, int) and known and not any(abs(size - total) <= 1 for size in known):
        nearest = min(known, key=lambda size: abs(size - total))
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


def _unbacked(facts: Mapping[str, Any], key: str, logs: Logs) -> str:
    """Why a claimed score does not follow from the logs; "" if it does.

    It follows if it is a number of a log, or the mean over logs of the last numbers under one label, or the mean of further
    claims (of single seeds) that are numbers of logs; each to the decimals that both have.
    """
    value = facts[key]
    if not logs.count:
        return f"{key} {value} is claimed, and no log is here that shows it"
    known = logs.every[key]
    if not known:
        return f"{key} {value} is claimed, and no log shows a {key}"
    runs = [numbers for numbers in logs.scores[key].values() if len(numbers) > 1]
    means = [f"{math.fsum(map(float, numbers)) / len(numbers):.8f}" for numbers in runs]
    seeds = [number for name, number in _numbers({k: v for k, v in facts.items() if k != key}) if name == key]
    if seeds and all(any(_agree(seed, one) for one in known) for seed in seeds):
        means.append(f"{math.fsum(seeds) / len(seeds):.8f}")
    if any(_agree(value, one) for one in [*known, *means]):
        return ""
    nearest = min([*known, *means], key=lambda one: abs(float(one) - value))
    return f"{key} {value} is claimed, the nearest in {logs.count} logs is {float(nearest):.8g}"


def _agree(claim: float, number: str) -> bool:
    """Whether a claim is a number of a log, rounded or cut to the decimals of the coarser one."""
    decimals = min(_decimals(repr(claim)), _decimals(number))
    return abs(claim - float(number)) < 1.001 * 10.0**-decimals


def _decimals(number: str) -> int:
    return 8 if "e" in number else len(number.partition(".")[2])


class _Lines:
    """Where a key stands in a text of JSON."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()

    def of(self, key: str, value: object) -> int:
        """The line that has the key and its value, or else the key; 0 if none has."""
        having = [n for n, line in enumerate(self.lines, 1) if f'"{key}"' in line]
        exact = [n for n in having if json.dumps(value) in self.lines[n - 1]]
        return (exact or having or [0])[0]
