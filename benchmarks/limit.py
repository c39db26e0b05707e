"""Bits above Shannon's bound that method `auto` spends on Gaussian matrices of known Kronecker curvature.

    python benchmarks/limit.py [--states 0 8 256] [--bits 2 3 4] [--seed 0] [--json OUT.json]

W [2048, 512] is white; the cost of an error E is ½·tr(G E H Eᵀ) with power-law spectra on both sides, H in a random
basis. The bound is reverse water-filling over the eigenvalues h_c·g_r: D = Σ min(θ, h·g), R = Σ max(0, ½·log2(h·g/θ)).
Code lengths are real bytes: codes, probability tables, scales and spread classes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pgolf.packer.coder import codec
from pgolf.packer.plane import Plane
from pgolf.quant import METHODS, MatrixCurvature, Settings

ROWS, COLS, EXPONENT = 2048, 512, 1.0


def coded_bits(plane: Plane) -> float:
    """Length in bits of everything that describes a plane: codes, tables, scales and spread classes."""
    packed = codec.encode([plane])
    return 8.0 * (sum(map(len, packed.sections.values())) + len(json.dumps(packed.head)))


def bound(eigenvalues: NDArray[np.float64], loss: float) -> float:
    """Reverse water-filling: least bits a weight at which the mean of min(θ, eigenvalue) is `loss`."""
    low, high = 0.0, float(eigenvalues.max())
    for _ in range(100):
        theta = (low + high) / 2
        low, high = (theta, high) if np.minimum(theta, eigenvalues).mean() < loss else (low, theta)
    return float(0.5 * np.log2(np.maximum(1, eigenvalues / theta)).mean())


def problem(seed: int) -> tuple[torch.Tensor, MatrixCurvature, NDArray[np.float64]]:
    """White weights, curvature with power-law spectra, and the eigenvalues of its Kronecker product."""
    generator = torch.Generator().manual_seed(seed)
    h = (1.0 + torch.arange(COLS, dtype=torch.float64)) ** -EXPONENT
    g = ((1.0 + torch.arange(ROWS, dtype=torch.float64)) ** -EXPONENT)[torch.randperm(ROWS, generator=generator)]
    Q, _ = torch.linalg.qr(torch.randn(COLS, COLS, generator=generator, dtype=torch.float64))
    curvature = MatrixCurvature(((Q * h) @ Q.T).float(), g.float())
    return torch.randn(ROWS, COLS, generator=generator), curvature, np.outer(g.numpy(), h.numpy()).ravel()


def measure(seed: int, states: int, step: float) -> dict[str, float]:
    """Quantize once; bits a weight, the bound at the same loss, and their difference."""
    W, curvature, eigenvalues = problem(seed)
    settings = Settings(trellis=states, step=step, damp_inputs=0.0, damp_outputs=0.0, unbias=0.0)
    start = time.perf_counter()
    plane = METHODS["auto"].quantize(W, curvature, settings)
    seconds = time.perf_counter() - start
    E = W.double() - torch.from_numpy(plane.reconstruct()).double()
    assert curvature.G is not None
    loss = float((curvature.G.double()[:, None] * (E @ curvature.H.double()) * E).mean())
    bits, least = coded_bits(plane) / W.numel(), bound(eigenvalues, loss)
    return {"states": states, "bits": bits, "bound": least, "gap": bits - least, "seconds": seconds}


def at_rate(seed: int, states: int, bits: float) -> dict[str, float]:
    """The measurement whose rate is within 0.02 bits of `bits`: secant steps on log2 of the step."""
    log_step, result = 4.0 - bits, {"bits": math.inf}
    for _ in range(6):
        result = measure(seed, states, 2.0**log_step)
        if abs(result["bits"] - bits) < 0.02:
            break
        log_step += result["bits"] - bits
    return result


def main() -> None:
    """Print one line a measurement; write all of them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, nargs="+", default=[0, 8, 256])
    parser.add_argument("--bits", type=float, nargs="+", default=[2.0, 3.0, 4.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    for states in options.states:
        for bits in options.bits:
            results.append(at_rate(options.seed, states, bits))
            line = "{states:>4} states  {bits:.3f} bits  bound {bound:.3f}  gap {gap:.4f}  {seconds:.1f} s"
            sys.stdout.write(line.format(**results[-1]) + "\n")
            sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
