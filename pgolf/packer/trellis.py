"""The state machine of the trellis codes: Ungerboeck's one-dimensional codes (IEEE Trans. IT 28, 1982, table I).

In state s an even s allows even lattice points k only, an odd s odd ones, and (k >> 1) & 1 picks the branch to the next
state. Encoder and decoder need nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# states: (h0, h1), the parity-check polynomials
PARITY_CHECKS = {
    4: (0o5, 0o2),
    8: (0o13, 0o4),
    16: (0o23, 0o4),
    32: (0o45, 0o10),
    64: (0o103, 0o24),
    128: (0o235, 0o126),
    256: (0o515, 0o362),
}
STRIP = 1024  # rows after which the state returns to 0, so that a coder may interleave the strips of a column


def next_states(states: int) -> NDArray[np.int32]:
    """int32 [states, 2]: the state after branch 0 and 1, from the systematic feedback form of the parity checks."""
    h0, h1 = PARITY_CHECKS[states]
    state = np.arange(states, dtype=np.int32)[:, None]
    branch = np.arange(2, dtype=np.int32)[None, :]
    return (state >> 1) ^ (state & 1) * np.int32(h0 >> 1) ^ branch * np.int32(h1 >> 1)


def on_path(codes: Array, on: Array, lengths: Array, states: int) -> bool:
    """Whether codes [N] form paths that a decoder can follow; entries not `on` the trellis must be even.

    Each strip (the next `lengths[s]` codes) starts in state 0.
    """
    successors = next_states(states)
    starts = np.cumsum(lengths) - lengths
    state = np.zeros(len(lengths), np.int32)
    for step in range(int(lengths.max(initial=0))):
        at = np.minimum(starts + step, len(codes) - 1)
        running = lengths > step
        code, active = codes[at], on[at]
        if (running & ((code & 1) != np.where(active, state & 1, 0))).any():
            return False
        state = np.where(active, successors[state, code >> 1 & 1], state)
    return True
