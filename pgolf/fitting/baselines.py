"""The contest's usual packer, as the others' figures are compared with it.

Full-Hessian GPTQ on SDClip's int6 grid, int8 embeddings (k 20/12.85 times the matrices'), half-precision scales and
brotli-11 over the codes: what most entries of openai/parameter-golf ship (#1394; k from 8 to 19.3 in #2046).
"""

from __future__ import annotations

from typing import Any

from pgolf.quant.settings import HALF, Settings

HOME_K = 12.85  # of the entries' int6 matrices
CONTEST_K = (9.0, HOME_K, 20.0, 30.0, 45.0)  # a curve from about 4 to 2.3 bits a weight


def contest(k: float = HOME_K) -> dict[str, Any]:
    """Arguments of `fitting.packing.pack` for the contest's packer with int6 clips at k standard deviations."""
    return {"method": "gptq", "coder": "brotli", "settings": Settings(step=k / HOME_K, scale_per_octave=HALF)}
