"""What an error in the weights costs, by K-FAC's approximation of the Fisher matrix (Martens and Grosse, arXiv 1503.05671)."""

from __future__ import annotations

from torch import Tensor

from pgolf.common import scratch
from pgolf.quant.curvature.store import MatrixCurvature


def loss_rise(error: Tensor, curvature: MatrixCurvature) -> float:
    """½·tr(G E H Eᵀ): the predicted rise of the loss in nats per token for a weight error [R, C]."""
    rows = scratch.pieces(*error.shape)
    if len(rows) > 1 and (curvature.G is None or curvature.G.dim() == 1):
        G = curvature.G
        return sum(loss_rise(error[r], MatrixCurvature(curvature.H, None if G is None else G[r])) for r in rows)
    error = error.to(curvature.H.device)
    left = error @ curvature.H
    if curvature.G is None:
        return 0.5 * float((left * error).double().sum())
    right = curvature.G[:, None] * error if curvature.G.dim() == 1 else curvature.G @ error
    return 0.5 * float((left * right).double().sum())
