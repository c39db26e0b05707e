"""Files into runs: logs of trainers, `train.jsonl` of pgolf, plain CSV."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

from pgolf.common.files import not_a_file
from pgolf.errors import DataError
from pgolf.oracle.logs import SETTINGS, parse, text_of
from pgolf.oracle.run import Run

COLUMNS = {  # of a CSV: our name, then others'
    "step": ("step", "iter", "iteration"),
    "ms": ("train_time_ms", "time_ms", "ms"),
    "loss": ("train_loss", "loss"),
    "bpb": ("val_bpb", "bpb"),
}
MOST_BYTES = 1 << 28
_COMPRESSED: dict[bytes, Callable[[BinaryIO], Any]] = {  # how a file begins: what reads it
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ\0": lzma.open,
    b"BZh": bz2.open,
}


def read(path: str | Path) -> list[Run]:
    """The runs of a file. DataError where it cannot be opened or has no line of progress."""
    path = Path(path)
    if not_a_file(path.resolve()) not in {"", "a folder"}:
        raise DataError(f"{path} is no regular file: save the log as one")
    try:
        with path.open("rb") as file:
            raw = _unpacked(file).read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > MOST_BYTES:
        raise DataError(f"{path}: more than {MOST_BYTES:,} bytes are no log of a run")
    text = text_of(raw)
    first = next((line.strip() for line in text.split("\n") if line.strip()), "")
    if first.startswith("{"):
        runs = _jsonl(text, str(path))
    elif _is_table(first):
        runs = _table(text, str(path))
    else:
        runs = parse(text, str(path))
    if not runs:
        raise DataError(
            f"{path}: has no line of a training step, such as 'step:100/20000 train_loss:3.1'; see docs/ORACLE.md"
        )
    return runs


def _unpacked(file: BinaryIO) -> IO[bytes]:
    """A file, or what is compressed in it by gzip, xz or bzip2, which is read no further than it is asked for."""
    begin = file.read(6)
    file.seek(0)
    for magic, opened in _COMPRESSED.items():
        if begin.startswith(magic):
            unpacked: IO[bytes] = opened(file)
            return unpacked
    return file


def _is_table(first: str) -> bool:
    names = {name.strip().lower() for name in first.split(",")}
    return len(names) > 1 and bool(names & {*COLUMNS["step"]}) and bool(names & {*COLUMNS["loss"], *COLUMNS["bpb"]})


def _number(value: Any) -> float:
    try:
        return math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _add(run: Run, row: Mapping[str, Any], ms: float, loss: str, bpb: str, step: float) -> None:
    nats, bits = (value if 0 < value < math.inf else math.nan for value in (_number(row.get(n)) for n in (loss, bpb)))
    said = [str(row.get(name)).strip().lower() for name in (loss, bpb)]
    if run.broken is None and any(word in {"nan", "inf", "-inf", "infinity"} for word in said):
        run.broken = int(step)
    run.points.append((step, ms, nats, bits))


def _jsonl(text: str, name: str) -> list[Run]:
    """pgolf's train.jsonl, one object a step; what is not an object with a step is passed over and counted."""
    run, lost = Run(name), 0
    for line in filter(str.strip, text.split("\n")):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        lost += not (isinstance(row, dict) and add_step(run, row))
    if lost:
        run.notes.append(f"{lost} lines are no steps and were passed over")
    _beside(run, Path(name))
    if run.points and math.isnan(run.nats) and all(math.isnan(bpb) for *_, bpb in run.points):
        raise DataError(
            f"{name}: has losses in nats only, and the BPB of a nat stands neither in its first line, as there is no validation "
            "shard, nor in train.json: foresee from a log with val_bpb"
        )
    return [run] if run.points else []


def add_step(run: Run, row: Mapping[str, Any]) -> bool:
    """Add a line of train.jsonl to its run: a step, and what the first line says of the whole run. False for what is no step."""
    step = _number(row.get("step"))
    if not 0 <= step < 1e12:
        return False
    run.settings |= {name: value for name in SETTINGS if (value := _number(row.get(name))) >= 0}
    if 0 < (nats := _number(row.get("bpb_per_nat"))) < math.inf:
        run.nats = nats
    _add(run, row, 1000 * _number(row.get("seconds")), "loss", "val_bpb", step)
    progress, tokens = _number(row.get("progress")), _number(row.get("tokens"))
    if 0 < progress <= 1 and step > 0:
        run.settings["iterations"] = float(round(step / progress))
    if tokens > 0 and step > 0:
        run.settings["train_batch_tokens"] = tokens / step
    if progress >= 1:
        run.total = int(step)
    return True


def _beside(run: Run, path: Path) -> None:
    """What train.json beside a train.jsonl adds: parameters, the BPB of a nat, and of a run that is over its scores."""
    try:
        facts = json.loads(path.with_name("train.json").read_text("utf-8"))
        run.settings["n_params"] = float(facts["parameters"])
        run.nats = float(facts["score"]["bpb"]) / float(facts["score"]["loss"])
        if run.total is not None and facts["steps"] == run.step:
            run.scores["post_ema"] = float(facts["score"]["bpb"])
            run.size = int(facts["packed"]["bytes"])
            run.scores["quantized"] = float(facts["packed"]["score"]["bpb"])
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError, OverflowError, RecursionError):
        return


def _table(text: str, name: str) -> list[Run]:
    """A CSV with a header: step and train_loss or val_bpb, train_time_ms if there is one, settings in columns of their names;
    a column `id` parts runs."""
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    rows.fieldnames = [column.strip().lower() for column in rows.fieldnames or []]
    names = {ours: next((n for n in theirs if n in rows.fieldnames), "") for ours, theirs in COLUMNS.items()}
    runs: dict[str, Run] = {}
    try:
        for row in rows:
            key = row.get("id") or ""
            run = runs.setdefault(key, Run(f"{name}#{key}" if key else name))
            step = _number(row.get(names["step"]))
            if 0 <= step < 1e12:
                _add(run, row, _number(row.get(names["ms"])), names["loss"], names["bpb"], step)
            run.settings |= {k: v for k in SETTINGS if (v := _number(row.get(k))) >= 0}
            if (nats := _number(row.get("bpb_per_nat"))) > 0:
                run.nats = nats
    except csv.Error as error:
        raise DataError(f"{name}: no CSV ({error})") from None
    return [run for run in runs.values() if run.points]
