"""Spectral initialisation: the embedding's first singular values follow a power law instead of lying close together.

Source: "overtone" initialisation, openai/parameter-golf #59, #60 (exponent ½). Here the norm stays what it was.
"""

from __future__ import annotations

import torch
from torch import Tensor


def power_law(W: Tensor, exponent: float) -> Tensor:
    """W with its singular vectors and Frobenius norm, and singular values in proportion to k^-exponent, k = 1, 2, ..."""
    U, S, V = torch.linalg.svd(W, full_matrices=False)
    law = torch.arange(1, len(S) + 1, dtype=S.dtype, device=S.device) ** -exponent
    shaped: Tensor = (U * (law * S.norm() / law.norm())) @ V
    return shaped
