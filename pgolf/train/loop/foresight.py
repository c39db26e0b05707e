"""The end of a run, foreseen while it trains: what `pgolf oracle` makes of the log so far, and what the model would pack to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import PgolfError
from pgolf.oracle.model import Band, foresee
from pgolf.oracle.reading import add_step
from pgolf.oracle.run import Run

if TYPE_CHECKING:
    from pgolf.fitting.estimate import Estimate

FIRST, EVERY = 0.1, 0.01  # shares of a run: where foresight begins, and how often it is looked again
SIZED = (0.1, 0.4, 0.7, 0.95)  # where the pack is estimated, which takes seconds


@dataclass(frozen=True)
class Foreseen:
    """final: BPB at the end; packed: of the artifact, both None where nothing can be foreseen. how: "fitted", or "curve" for the
    run's own curve continued, as `oracle.model.Foresight` has it. size: bytes of the artifact, and whether the budget holds
    them; None where nobody asked for a pack."""

    step: int
    final: Band | None
    packed: Band | None
    how: str
    size: int | None = None
    fits: bool | None = None

    def values(self) -> dict[str, float]:
        """By the names of `stop_if.NAMES`, as far as they are known."""
        known = {
            name: band.value for name, band in (("final", self.final), ("packed", self.packed)) if band is not None
        }
        return known | ({} if self.size is None else {"size": float(self.size)})

    def __str__(self) -> str:
        """For the line of progress: "final 1.4312, packed 1.4455, 301,024 B"."""
        by = " by its own curve" if self.how == "curve" else ""
        said = [f"final {self.final.value:.4f}{by}"] if self.final else []
        said += [f"packed {self.packed.value:.4f}"] if self.packed else []
        said += [f"{self.size:,} B" + ("" if self.fits else ", too large")] if self.size is not None else []
        return ", ".join(said)


class Watch:
    """Follows one run. facts: of the first line of train.jsonl, see `first_line`; rows: lines of a run that goes on; estimate:
    what the pack that is asked for would give now, None where none is."""

    def __init__(
        self, facts: Mapping[str, float], rows: Iterable[Mapping[str, Any]], estimate: Callable[[], Estimate] | None
    ) -> None:
        self.run = Run("train.jsonl")
        self.estimate, self.made = estimate, _Sized()
        self._next = FIRST
        for row in rows:
            add_step(self.run, row)
        add_step(self.run, {"step": 0, **facts})

    def after(self, row: Mapping[str, Any]) -> Foreseen | None:
        """What is foreseen after a step; None where it was not time to look."""
        add_step(self.run, row)
        progress = float(row["progress"])
        if progress < self._next or progress >= 1:
            return None
        self._next = progress + EVERY
        return self._look(progress)

    @property
    def failed(self) -> str:
        """Why the pack could not be estimated; "" where it could."""
        return self.made.failed

    def _look(self, progress: float) -> Foreseen:
        found = foresee(self.run)
        final, packed = found.bands.get("unpacked"), found.bands.get("final")
        known = self.run.nats > 0  # else a curve is in nats
        seen = Foreseen(self.run.step, final if known else None, packed if known else None, found.how)
        if self.estimate is None:
            return seen
        made = self.made.at(progress, self.estimate)
        if made is None:
            return seen
        if final is not None and known and made.loss_rise is not None:
            rise = made.loss_rise * self.run.nats
            packed = Band(final.value + rise, final.low + rise, final.high + rise)
            seen = replace(seen, packed=packed)
        return replace(seen, size=made.total_bytes, fits=made.fits)


class _Sized:
    """The last estimate, made again at each share of SIZED; None from where it failed on, and `failed` says why."""

    def __init__(self) -> None:
        self.last: Estimate | None = None
        self.place, self.failed = -1, ""

    def at(self, progress: float, estimate: Callable[[], Estimate]) -> Estimate | None:
        place = sum(progress >= share for share in SIZED)
        if place != self.place and not self.failed:
            try:
                self.last, self.place = estimate(), place
            except PgolfError as error:  # no reason to end a run that goes well
                self.last, self.failed = None, str(error)
        return self.last


def first_line(
    *,
    parameters: int,
    vocab_size: int,
    batch_tokens: int,
    seq_len: int,
    ranks: int,
    minutes: float | None,
    bpb_per_nat: float,
) -> dict[str, float]:
    """What the first line of train.jsonl has beside its step, so that the log alone is enough for `pgolf oracle`; numbers that
    are not known are left out."""
    facts = {
        "n_params": float(parameters), "vocab": float(vocab_size), "train_batch_tokens": float(batch_tokens),
        "train_seq_len": float(seq_len), "world_size": float(ranks), "max_wallclock_s": 60 * (minutes or 0.0),
        "bpb_per_nat": bpb_per_nat,
    }  # fmt: skip
    return {name: value for name, value in facts.items() if math.isfinite(value)}


def bpb_of_a_nat(byte_counts: NDArray[np.integer], targets: int) -> float:
    """Bits a byte that a loss of one nat a token is, over the first `targets` of a text; byte_counts: [N], of every token."""
    counted = byte_counts[1 : targets + 1]
    total = int(counted.sum(dtype=np.int64))
    return len(counted) / (math.log(2) * total) if total else math.nan
