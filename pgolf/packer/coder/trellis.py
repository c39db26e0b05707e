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
    0: (0, 0),
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
    """int32 [states, 2]: the state after branch 0 and 1."""
    return transitions(states).reshape(-1, 4, 2)[:, 1].astype(np.int32)


def transitions(states: int) -> Array:
    """int64 [8 · states]: the state after each state << 3 | last of its strip << 2 | on the trellis << 1 | branch.

    From the systematic feedback form of the parity checks. states: 0, of scalar codes, gives a state that is never left.
    """
    h0, h1 = PARITY_CHECKS[states]
    index = np.arange(8 * max(states, 1))
    state, branch = index >> 3, index & 1
    moved = state >> 1 ^ (state & 1) * (h0 >> 1) ^ branch * (h1 >> 1)
    return np.where(index & 4, 0, np.where(index & 2, moved, state))


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
