"""Factors of the input curvature: H⁻¹ = Uᵀ U with U upper triangular, robust to dead inputs and singular H."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from pgolf.common.factoring import factoring

LEAST_JITTER = 1e-10  # of the mean diagonal: the first that is tried
_grown: ContextVar[list[float] | None] = ContextVar("grown", default=None)


@contextmanager
def watched() -> Iterator[list[float]]:
    """Collects, of this thread, by what share of a mean diagonal `cholesky` had to raise it; nothing where it did not.

    The quantizers between the two know nothing of it.
    """
    shares: list[float] = []
    token = _grown.set(shares)
    try:
        yield shares
    finally:
        _grown.reset(token)


def damped(H: Tensor, share: float) -> tuple[Tensor, float]:
    """H [C, C] in float64 over its mean diagonal, dead inputs' diagonal set to that mean, plus share·I; and the mean.

    Dividing by the mean makes every later step independent of the unit of H.
    """
    H = H.to(torch.float64, copy=True)  # what follows changes it in place: wide ones are the largest of a pack
    diagonal = H.diagonal().clone()
    live = diagonal > 0
    mean = diagonal[live].mean() if bool(live.any()) else torch.ones((), dtype=H.dtype, device=H.device)
    H /= mean
    H.diagonal()[~live] = 1.0
    H.diagonal().add_(share)
    return H, float(mean)


def ascending(H: Tensor, share: float) -> tuple[Tensor, Tensor, float]:
    """(order, U, mean) of H [C, C] as `damped` by a share: the columns by ascending diagonal, int64 [C], `inverse_upper` of H in
    that order, and the mean. Beside H no more than three matrices of its size are held."""
    H, mean = damped(H, share)
    order = H.diagonal().argsort(stable=True)
    back = order.flip(0)
    H = H[back][:, back]
    factor = cholesky(H)
    del H
    return order, _inverted(factor), mean


def inverse_upper(H: Tensor) -> Tensor:
    """float64 [C, C]: U, upper triangular, with H⁻¹ = Uᵀ U, for a symmetric positive definite H.

    From the reversed matrix: with J the exchange matrix, J H J = L Lᵀ gives U = J L⁻¹ J. One factorisation and one
    triangular inverse, where chol(inv(H)) needs three and loses half of the digits.
    """
    return _inverted(cholesky(H.flip(0, 1)))


def _inverted(factor: Tensor) -> Tensor:
    """J L⁻¹ J of a lower factor L."""
    inverse = torch.eye(len(factor), dtype=factor.dtype, device=factor.device).mT  # column by column, as it is solved
    with factoring(factor):
        torch.linalg.solve_triangular(factor, inverse, upper=False, out=inverse)
    return inverse.flip(0, 1)


def cholesky(A: Tensor) -> Tensor:
    """Lower Cholesky factor of A, with the diagonal raised tenfold at a time until it exists."""
    factor: Tensor
    with factoring(A):
        factor, failed = torch.linalg.cholesky_ex(A)
    share, mean = 0.0, A.diagonal().mean()
    while int(failed):
        share = max(10 * share, LEAST_JITTER)
        raised = A + share * mean * torch.eye(A.shape[0], dtype=A.dtype, device=A.device)
        with factoring(A):
            factor, failed = torch.linalg.cholesky_ex(raised)
    if share and (shares := _grown.get()) is not None:
        shares.append(share)
    return factor
