"""A foresight in lines for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pgolf.oracle.model import TARGETS, Band, Foresight, ahead

TITLES = {"unpacked": "before packing", "final": "after packing"}


def lines(found: Foresight) -> list[str]:
    """What is known of one run and what is foreseen of it."""
    run = found.run
    said = [f"{run.name}: {_reached(found)}"]
    said += [f"  {TITLES[target]:<16}{_band(found.bands[target])}" for target in TARGETS if target in found.bands]
    if run.size is not None:
        said.append(f"  {'submission':<16}{run.size:,} bytes")
    if found.how == "curve":
        said.append(f"  its own curve continued, not the fit: {'; '.join(found.outside)}")
    elif found.how == "nothing":
        said.append(f"  nothing is foreseen: {'; '.join(found.outside) or 'too few points'}")
    return [*said, *(f"  note: {note}" for note in run.notes)]


def _reached(found: Foresight) -> str:
    run = found.run
    of = f" of {found.total:,.0f}" if math.isfinite(found.total) and found.total != run.step else ""
    time = f", {run.milliseconds / 1000:,.0f} s" if math.isfinite(run.milliseconds) else ""
    over = ", over" if run.total is not None else ""
    return f"step {run.step:,}{of}{time}{over}"


def _band(band: Band) -> str:
    return f"{band.value:.4f}  measured" if band.known else f"{band.value:.4f}  80%: {band.low:.4f} to {band.high:.4f}"


def ranking(found: Sequence[Foresight]) -> list[str]:
    """Several runs in the order of their foreseen packed score, each with the odds that it ends ahead of the next."""
    ranked = sorted((one for one in found if "final" in one.bands), key=lambda one: one.bands["final"].value)
    if len(ranked) < 2:
        return []
    said = ["foreseen order, and how likely each ends ahead of the next:"]
    for one, after in zip(ranked, [*ranked[1:], None], strict=True):
        odds = ahead(one, after, "final") if after is not None else None
        said.append(f"  {one.bands['final'].value:.4f}  {one.run.name}{'' if odds is None else f'  {odds:.0%}'}")
    return said
