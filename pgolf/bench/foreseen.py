"""What rounding should take on an H100, counted without one: launches, bytes, and the steps that follow one another.

LAUNCH: seconds of the host for a launch. BANDWIDTH: bytes a second. STEP: seconds of one row of one column in the rounding
kernel: some 700 instructions of a warp (of the 1,640 that are compiled for eight states) at one every other cycle of 1.7 GHz.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgolf.kernels.round_block import LINES, ROWS
from pgolf.quant.rounding.diagonals import OPERATIONS
from pgolf.quant.rounding.feedback import row_blocks

LAUNCH, BANDWIDTH, STEP = 5e-6, 3e12, 0.8e-6
PASSES = 12  # over the numbers of a diagonal's blocks, by the operations around the kernel


def rounding(shapes: Mapping[tuple[int, int], int], states: int) -> dict[str, Any]:
    """Of matrices [R, C] and how many there are of each: launches, and seconds if kinds followed one another and, as they do
    on their own streams, if the longest kind hides the others."""
    kinds = [_of_kind(rows, cols, count, states) for (rows, cols), count in shapes.items()]
    seconds = [kind["seconds"] for kind in kinds]
    return {
        "launches": sum(kind["launches"] for kind in kinds),
        "seconds_in_turn": sum(seconds),
        "seconds_side_by_side": max(seconds, default=0.0),
    }


def _of_kind(rows: int, cols: int, count: int, states: int) -> dict[str, float]:
    blocks, across = list(row_blocks(rows, states, feedback=True)), -(-cols // LINES)
    diagonals = len(blocks) + across - 1
    launches = diagonals * (OPERATIONS + 1)
    moved = 4 * PASSES * count * len(blocks) * across * LINES * ROWS
    longest = max(stop - start for start, _, stop in blocks)
    steps = diagonals * min(cols, LINES) * longest
    return {"launches": launches, "seconds": LAUNCH * launches + moved / BANDWIDTH + STEP * steps}
