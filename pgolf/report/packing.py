"""What one pack did, as JSON, and its table and closing lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from pgolf.common.sizes import show_size

if TYPE_CHECKING:
    from rich.table import Table

MOST_LINES = 6  # of one kind


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
class Fate:
    """What became of one tensor of the checkpoint. path: where it lay; name: in the artifact, "" if it is not there.

    fate: "packed", "kept", "alias" (why: of which name) or "left out". num_bytes: as it was.
    """

    path: str
    name: str
    shape: list[int]
    dtype: str
    num_bytes: int
    fate: str
    why: str


@dataclass(frozen=True)
class Report:
    """What `pack` did. data: the artifact; budget covers it plus the sum of code_bytes; step: the knob, if searched.

    account: every tensor of the checkpoint, those that were left out included.
    """

    rows: list[TensorRow]
    data: bytes = field(repr=False)
    code_bytes: dict[str, int] = field(default_factory=dict)
    budget: int | None = None
    step: float | None = None
    coder: str = "rans"
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    account: list[Fate] = field(default_factory=list)

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
        plain["account"] = [asdict(fate) for fate in self.account]
        return plain | derived | {"rows": rows}


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


def account_lines(account: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was left out of the checkpoint and why, folded by where it lay; names that are one tensor."""
    folds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for item in account:
        if item["fate"] == "left out":
            folds.setdefault((item["path"].partition(".")[0], item["why"]), []).append(item)
    lines = [
        f"left out           {_folded(top, items)}, {show_size(sum(i['num_bytes'] for i in items))}: {why}"
        for (top, why), items in list(folds.items())[:MOST_LINES]
    ]
    if (more := len(folds) - MOST_LINES) > 0:
        lines.append(f"left out           {more} more kinds, see --json")
    aliases = [f"{item['name']} = {item['why']}" for item in account if item["fate"] == "alias"]
    if aliases:
        rest = f" and {len(aliases) - MOST_LINES} more" if len(aliases) > MOST_LINES else ""
        lines.append(f"one tensor         {', '.join(aliases[:MOST_LINES])}{rest}")
    return lines


def _folded(top: str, items: Sequence[Mapping[str, Any]]) -> str:
    return str(items[0]["path"]) if len(items) == 1 else f"{top} ({len(items)} tensors)"


def pack_summary(report: Mapping[str, Any]) -> list[str]:
    """The closing lines of `pgolf pack`."""
    lines = [f"note: {note}" for note in report["notes"]]
    lines += account_lines(report.get("account", []))
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
