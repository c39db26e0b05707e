"""The log of a run, one JSON object a line, and the plot drawn from it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.common import extras
from pgolf.common.files import replacing
from pgolf.errors import DataError
from pgolf.report import write_text
from pgolf.train.loop.trainer import StepInfo

_FIELDS: dict[str, set[type]] = {"step": {int}, "tokens": {int}, "loss": {int, float}}  # what is read again


class MetricsLog:
    """Appends a line for every step. Lines of `path` beyond `keep` steps are dropped: a resumed run repeats them."""

    def __init__(self, path: Path, *, keep: int = 0) -> None:
        kept = [row for row in read_metrics(path) if row["step"] <= keep] if keep and path.exists() else []
        write_text(path, "".join(map(_line, kept)))
        self._path, self._file = path, path.open("ab", buffering=0)

    def __call__(self, info: StepInfo, **more: float) -> None:
        try:
            self._file.write(_line(asdict(info) | more).encode())
        except OSError as error:
            error.filename = str(self._path)  # a full disk does not say where
            raise

    def close(self) -> None:
        """Nothing may be written afterwards."""
        self._file.close()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log; a last one that was cut off is left out. DataError for anything else."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a log of training: {error.reason} at byte {error.start}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise DataError(f"{path}, line {number}: not JSON, so not a log of training") from None
        if not isinstance(row, dict) or not all(type(row.get(name)) in kinds for name, kinds in _FIELDS.items()):
            raise DataError(f"{path}, line {number}: not a step of a training log")
        rows.append(row)
    return rows


def plot_loss(log: str | Path, path: str | Path, *, title: str = "training") -> None:
    """PNG of the loss over tokens: every step pale, their moving average dark, and probes of held-out BPB if any."""
    extras.need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(log)
    if not rows:
        raise DataError(f"{log}: no steps to plot")
    tokens, loss = columns(rows, "tokens", "loss")
    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(tokens / 1e6, loss, color="0.8", linewidth=0.8, label="each step")
    axes.plot(tokens / 1e6, _smooth(loss, max(1, len(loss) // 50)), color="C0", label="mean of the last 2% of steps")
    axes.set(xlabel="million tokens", ylabel="loss, nats a token", title=title)
    low, high = loss.min(), np.quantile(loss, 0.98)
    axes.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)
    probes = [(row["tokens"] / 1e6, row["val_bpb"]) for row in rows if "val_bpb" in row]
    if probes:
        right = axes.twinx()
        right.plot(*zip(*probes, strict=True), color="C1", marker="o", markersize=3)
        right.set_ylabel("held-out bits per byte (points)", color="C1")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(Path(path)) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def columns(rows: list[dict[str, Any]], *names: str) -> list[NDArray[np.float64]]:
    """float64 [rows] of each of the fields. DataError for figures that no float holds."""
    try:
        return [np.array([row[name] for row in rows], np.float64) for name in names]
    except OverflowError:
        raise DataError("a figure in the log of training is beyond all bounds: delete the log") from None


def _smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Mean of each value and up to `width` - 1 before it."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    first = np.maximum(np.arange(len(values)) + 1 - width, 0)
    last = np.arange(len(values)) + 1
    means: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return means
