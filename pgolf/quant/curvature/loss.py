"""What an error in the weights costs, by K-FAC's approximation of the Fisher matrix (Martens and Grosse, arXiv 1503.05671)."""

from __future__ import annotations

from torch import Tensor

from pgolf.quant.curvature.store import MatrixCurvature


def loss_rise(error: Tensor, curvature: MatrixCurvature) -> float:
    """½·tr(G E H Eᵀ): the predicted rise of the loss in nats per token for a weight error [R, C]."""
    error = error.to(curvature.H.device)
    left = error @ curvature.H
    if curvature.G is None:
        return 0.5 * float((left * error).double().sum())
    right = curvature.G[:, None] * error if curvature.G.dim() == 1 else curvature.G @ error
    return 0.5 * float((left * right).double().sum())
