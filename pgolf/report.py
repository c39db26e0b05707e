"""Results as JSON, and tables and plots drawn only from that JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.packer.container import replacing
from pgolf.sizes import show_size

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a report. error: ‖W − Ŵ‖/‖W‖; loss_rise: predicted nats per token; kept: why it is not quantized."""

    name: str
    shape: list[int]
    dtype: str
    method: str
    kept: str
    weights: int
    num_bytes: float
    error: float | None = None
    loss_rise: float | None = None

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.num_bytes / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Report:
    """What `pack` did. data: the artifact; budget covers it plus the sum of code_bytes; step: the knob, if searched."""

    rows: list[TensorRow]
    data: bytes = field(repr=False)
    code_bytes: dict[str, int] = field(default_factory=dict)
    budget: int | None = None
    step: float | None = None
    coder: str = "rans"
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def artifact_bytes(self) -> int:
        """Length of the artifact."""
        return len(self.data)

    @property
    def total_bytes(self) -> int:
        """Artifact and code as the budget counts them."""
        return self.artifact_bytes + sum(self.code_bytes.values())

    @property
    def headroom(self) -> int | None:
        """Bytes of the budget left over."""
        return None if self.budget is None else self.budget - self.total_bytes

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight over the quantized tensors, their scales and tables included."""
        chosen = [row for row in self.rows if row.error is not None]
        return 8 * sum(row.num_bytes for row in chosen) / max(sum(row.weights for row in chosen), 1)

    @property
    def loss_rise(self) -> float | None:
        """Predicted rise of the loss, nats per token, over the tensors whose curvature is known."""
        known = [row.loss_rise for row in self.rows if row.loss_rise is not None]
        return sum(known) if known else None

    def to_json(self) -> dict[str, Any]:
        """Everything but the artifact itself, derived figures included."""
        rows = [asdict(row) | {"bits_per_weight": row.bits_per_weight} for row in self.rows]
        derived = {
            "artifact_bytes": self.artifact_bytes,
            "total_bytes": self.total_bytes,
            "headroom": self.headroom,
            "bits_per_weight": self.bits_per_weight,
            "loss_rise": self.loss_rise,
        }
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in {"data", "rows"}}
        return plain | derived | {"rows": rows}


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    with replacing(Path(path)) as file:
        file.write((json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def pack_table(report: Mapping[str, Any]) -> Table:
    """The table of `pgolf pack`, from Report.to_json()."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("tensor", overflow="fold")
    table.add_column("shape")
    table.add_column("method", overflow="fold")
    for name in ("bits/weight", "bytes", "error", "loss rise"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report["rows"]:
        why = f" ({row['kept']})" if row["kept"] else ""
        table.add_row(
            row["name"],
            "×".join(map(str, row["shape"])) or "scalar",
            row["method"] + why,
            f"{row['bits_per_weight']:.2f}",
            f"{row['num_bytes']:,.0f}",
            "" if row["error"] is None else f"{row['error']:.4f}",
            "" if row["loss_rise"] is None else f"{row['loss_rise']:.2e}",
        )
    return table


def pack_summary(report: Mapping[str, Any]) -> list[str]:
    """The closing lines of `pgolf pack`."""
    lines = [f"note: {note}" for note in report["notes"]]
    lines.append(f"quantized weights  {report['bits_per_weight']:.3f} bits each")
    if report["loss_rise"] is not None:
        lines.append(f"predicted rise     {report['loss_rise']:.5f} nats per token")
    lines.append(f"artifact           {show_size(report['artifact_bytes'])}")
    for name, num_bytes in report["code_bytes"].items():
        lines.append(f"code               {show_size(num_bytes)}  {name}")
    if report["budget"] is not None:
        share = 100 * report["headroom"] / report["budget"]
        lines.append(
            f"budget             {show_size(report['budget'])}, used {show_size(report['total_bytes'])}, "
            f"headroom {show_size(report['headroom'])} ({share:.2f}%)"
        )
    lines.append(f"time               {report['seconds']:.1f} s")
    return lines


def estimate_lines(facts: Mapping[str, Any]) -> list[str]:
    """What `pgolf estimate` says, from Estimate.to_json()."""
    bar = f" ± {show_size(facts['error_bytes'])}" if facts["error_bytes"] else " (packed whole: exact)"
    lines = [f"note: {note}" for note in facts["notes"]]
    lines.append(f"artifact           {show_size(facts['num_bytes'])}{bar}")
    lines += [f"code               {show_size(size)}  {name}" for name, size in facts["code_bytes"].items()]
    if facts["budget"] is not None:
        lines.append(f"budget             {show_size(facts['budget'])}, foreseen {show_size(facts['total_bytes'])}")
    lines.append(f"quantized weights  {facts['bits_per_weight']:.3f} bits each, {facts['sampled']:.0%} of them tried")
    lines.append(f"relative error     {facts['relative_error']:.4f}")
    if facts["loss_rise"] is not None:
        lines.append(f"predicted rise     {facts['loss_rise']:.5f} nats per token")
    lines.append(f"time               {facts['seconds']:.1f} s")
    return lines


def submission_table(facts: Mapping[str, Any]) -> Table:
    """The table of `pgolf export`, from Count.to_json()."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("raw bytes", justify="right", no_wrap=True)
    table.add_column("counted", justify="right", no_wrap=True)
    for file in facts["files"]:
        table.add_row(file["name"], f"{file['raw_bytes']:,}", f"{file['counted_bytes']:,}")
    return table


def inspect_table(facts: Mapping[str, Any]) -> Table:
    """The table of `pgolf inspect`."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("tensor", "shape", "dtype", "how", "codes"):
        table.add_column(name, overflow="fold")
    for t in facts["tensors"]:
        how = t["note"]
        if "shared_with" in t:
            how = f"shared with {t['shared_with']}"
        elif "kept_as" in t:
            how = f"kept as {t['kept_as']} ({t['note']})"
        codes = "{}..{}".format(*t["code_range"]) if "code_range" in t else ""
        table.add_row(t["name"], "×".join(map(str, t["shape"])) or "scalar", t["dtype"], how, codes)
    return table


def plot_points(points: Sequence[Mapping[str, Any]], path: str | Path, *, title: str, reference: float) -> None:
    """PNG of BPB over artifact bytes. points: {"name", "bytes", "bpb"}; reference: BPB before quantization."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(reference, color="0.5", linewidth=1, linestyle="--", label="before quantization")
    for name in dict.fromkeys(p["name"] for p in points):
        mine = sorted((p["bytes"], p["bpb"]) for p in points if p["name"] == name)
        axes.plot(*zip(*mine, strict=True), marker="o", markersize=4, label=name)
    axes.set(xlabel="artifact bytes", ylabel="bits per byte, held-out text", title=title)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:,.0f} kB")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(Path(path)) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def demo_table(result: Mapping[str, Any]) -> Table:
    """The table of `pgolf demo`: what each artifact weighs and what quantization cost."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("artifact")
    for name in ("bytes", "bits/weight", "BPB", "rise", "pack s", "load s"):
        table.add_column(name, justify="right")
    table.add_row(
        "checkpoint (float32)", f"{result['checkpoint_bytes']:,}", "32", f"{result['bpb_before']:.4f}", "", "", ""
    )
    for p in result["points"]:
        figures = (f"{p['bytes']:,}", f"{p['bits_per_weight']:.2f}", f"{p['bpb']:.4f}")
        rise = f"+{p['bpb'] - result['bpb_before']:.4f}"
        table.add_row(
            f"{p['name']} ({p['file']})", *figures, rise, f"{p['pack_seconds']:.1f}", f"{p['load_seconds']:.2f}"
        )
    return table
