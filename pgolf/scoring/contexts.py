"""Does a long context harm the model? A transformer often fails beyond the lengths that it was trained on.

The contest's disjoint windows hide it: on `golf3m`, which predicts best some 500 tokens into a window, windows of 1,024
tokens score worse than windows of 512, though every token has more to go by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PARTS = 8  # of a context whose mean losses are compared
HARM = 0.1  # of the loss of the best part: how far the last part must lie above it...
SIGMAS = 4  # ...and how many standard errors over windows: the best of eight looks better than it is
FEWEST = 8  # whole windows


def harmless_length(nats: NDArray[np.floating], runs: Sequence[tuple[int, int]], seq_len: int) -> int | None:
    """A context length up to which the loss does not rise; None where all of `seq_len` does no harm.

    nats: [N], scored in disjoint windows of `seq_len` within each of the `runs` (first, end), see `bpb.segments`. Only
    whole windows are looked at, so that every place in a window has seen the same texts.
    """
    starts = [start for first, end in runs for start in range(first, end - seq_len + 1, seq_len)]
    if len(starts) < FEWEST or seq_len < PARTS:
        return None
    edges = np.arange(PARTS) * seq_len // PARTS
    sizes = np.diff(edges, append=seq_len)
    losses = np.stack([np.add.reduceat(nats[s : s + seq_len], edges, dtype=np.float64) for s in starts]) / sizes
    best = int(losses.mean(0).argmin())
    rise = losses[:, -1] - losses[:, best]
    sure = rise.mean() > SIGMAS * rise.std(ddof=1) / math.sqrt(len(rise))
    return int(edges[best] + sizes[best]) if sure and rise.mean() > HARM * losses[:, best].mean() else None
