"""What one pack did, and its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a report. num_bytes: what it adds to the artifact, header_bytes of them for its name and shape; error:
    ‖W − Ŵ‖/‖W‖; loss_rise: predicted nats per token; kept: why it is not quantized."""

    name: str
    shape: list[int]
    dtype: str
    method: str
    kept: str
    weights: int
    num_bytes: float
    error: float | None = None
    loss_rise: float | None = None
    header_bytes: float = 0.0

    @property
    def bits_per_weight(self) -> float:
        """Of what it holds, without its name and shape."""
        return 8 * (self.num_bytes - self.header_bytes) / self.weights if self.weights else 0.0


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
class Measured:
    """The artifact's model against the unquantized one on `tokens` of the text held back, in nats per token: see
    `scoring.divergence`. culprits: tensors that seem to carry it, where it is far more than was foreseen."""

    text: str
    tokens: int
    kl: float
    kl_error: float
    kl_rare: float
    same_top: float
    loss: float
    rise: float
    culprits: tuple[str, ...] = ()
    rise_error: float = 0.0


@dataclass(frozen=True)
class Asked:
    """What a pack was to stay below in place of a budget. what: "bits", "target_rise" (predicted), "max_kl" or "max_rise"
    (measured); found: what the artifact has of it; trials: how many were measured for it."""

    what: str
    limit: float
    found: float
    trials: int = 0


@dataclass(frozen=True)
class Tuned:
    """What `--tune` did. tokens: seen; seed: of their order. kl_before, kl: of the open loop's artifact and of the one kept,
    on the text held back. helped: the one kept is the closed loop's. notes: why not, or what went wrong on the way."""

    tokens: int
    seed: int
    kl_before: float
    kl: float
    helped: bool
    notes: str = ""


@dataclass(frozen=True)
class Dropped:
    """A buffer that was left out for the model's class to make. num_bytes: what it would have added to the artifact;
    rebuilt: whether the class makes it bit for bit, None where that was not looked at."""

    name: str
    shape: list[int]
    dtype: str
    num_bytes: float
    rebuilt: bool | None


@dataclass(frozen=True)
class Report:
    """What `pack` did. data: the artifact; budget covers it plus the sum of code_bytes; step: the knob, if searched.

    account: every tensor of the checkpoint, those that were left out included. measured: where a model and text were at hand;
    tuned: where the closed loop was asked for; asked: the goal, where it is no budget. shared_bytes: of the
    artifact, what belongs to no single tensor; with the rows' bytes it is all of it.
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
    measured: Measured | None = None
    tuned: Tuned | None = None
    shared_bytes: float = 0.0
    dropped: list[Dropped] = field(default_factory=list)
    asked: Asked | None = None

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
        """Bits a weight over the quantized tensors, their scales included."""
        chosen = [row for row in self.rows if row.error is not None]
        return sum(row.bits_per_weight * row.weights for row in chosen) / max(sum(row.weights for row in chosen), 1)

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
        plain |= {name: plain[name] and asdict(plain[name]) for name in ("measured", "tuned", "asked")}
        plain["dropped"] = [asdict(each) for each in self.dropped]
        return plain | derived | {"rows": rows}
