"""The curvature of several matrices with the same inputs as one whose rows are all of theirs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pgolf.quant.curvature.store import MatrixCurvature


def stacked(parts: Sequence[MatrixCurvature]) -> MatrixCurvature:
    """Of [R_1 + R_2 + ..., C] from those of [R_i, C], each with its G.

    Σ_i G_i ⊗ H_i on disjoint rows: the single product with the same two partial traces. Diagonal if one of the G_i is.
    """
    G = [part.G for part in parts if part.G is not None]
    assert len(G) == len(parts)
    outputs = [float(g.double().sum() if g.dim() == 1 else g.double().trace()) for g in G]
    inputs = [float(part.H.double().trace()) for part in parts]
    if not sum(outputs) > 0:
        outputs = [1.0] * len(parts)
    H = sum((o * part.H for o, part in zip(outputs[1:], parts[1:], strict=True)), outputs[0] * parts[0].H) / sum(
        outputs
    )
    whole = max(float(H.double().trace()), 1e-300)
    G = [g * (trace / whole) for g, trace in zip(G, inputs, strict=True)]
    if any(g.dim() == 1 for g in G):
        return MatrixCurvature(H, torch.cat([g if g.dim() == 1 else g.diagonal() for g in G]), parts[0].plain)
    both: Tensor = torch.block_diag(*G)  # type: ignore[no-untyped-call]  # torch has no types for it
    return MatrixCurvature(H, both, parts[0].plain)
