"""Pack 36M synthetic weights in the contest's shapes to 16,000,000 bytes: seconds of each stage, trials, peak memory.

    python benchmarks/pack36m.py [--trellis 8] [--budget 16MB] [--out RESULT.json]

Weights are Gaussian with lognormal row and column spreads; curvature is of power-law spectra in random bases, on both
sides of every matrix (diagonal over the rows of the embedding), as real models have it.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import RESULTS, machine
from pgolf import report
from pgolf.fitting import packing
from pgolf.loading import dense
from pgolf.packer.format import artifact
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.settings import Settings

LAYERS = 11
SHAPES = {"q": (512, 512), "k": (256, 512), "v": (256, 512), "o": (512, 512), "up": (2048, 512), "down": (512, 2048)}
VOCABULARY, WIDTH = 8192, 512


def power_law(size: int, generator: torch.Generator, scale: float) -> Tensor:
    """A covariance with eigenvalues scale / (1 + rank) in a random basis."""
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
    return (basis * (scale / (1 + torch.arange(size)))) @ basis.T


class Synthetic:
    """State dict and curvature of a made-up model; `matrices` as pgolf.Curvature has it."""

    unreached, notes = frozenset[str](), ()

    def __init__(self, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.state: dict[str, Tensor] = {}
        self.curvatures: dict[str, MatrixCurvature] = {}
        inputs = {c: power_law(c, g, 10.0) for c in (512, 2048)}
        outputs = {r: power_law(r, g, 3e-3) for r in (256, 512, 2048)}
        for layer in range(LAYERS):
            for name, (rows, cols) in SHAPES.items():
                key = f"blocks.{layer}.{name}.weight"
                self._add(key, rows, cols, g)
                self.curvatures[key] = MatrixCurvature(inputs[cols], outputs[rows])
        self._add("tok_emb.weight", VOCABULARY, WIDTH, g)
        often = 1 / (10 + torch.arange(VOCABULARY)).float()
        self.curvatures["tok_emb.weight"] = MatrixCurvature(inputs[WIDTH], 3e-2 * often)

    def _add(self, name: str, rows: int, cols: int, g: torch.Generator) -> None:
        spread = torch.exp(0.3 * torch.randn(rows, 1, generator=g) + 0.4 * torch.randn(1, cols, generator=g))
        self.state[name] = 0.05 * spread * torch.randn(rows, cols, generator=g)

    def matrices(self, name: str) -> list[MatrixCurvature | None] | None:
        return [self.curvatures[name]] if name in self.curvatures else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trellis", type=int, default=8)
    parser.add_argument("--budget", default="16MB")
    parser.add_argument("--out", type=Path, default=RESULTS / "pack36m.json")
    args = parser.parse_args()
    synthetic = Synthetic()
    trials = []

    def progress(what: str, done: int, total: int) -> None:
        if what == "fill the budget":
            trials.append({"bytes": done, "seconds": time.perf_counter() - began})
            print(f"trial {len(trials)}: {trials[-1]['seconds']:.1f} s, {done:,} of {total:,} B", flush=True)

    began, cpu = time.perf_counter(), time.process_time()
    made = packing.pack(
        synthetic.state,
        None,
        budget=args.budget,
        curvature=synthetic,  # type: ignore[arg-type]
        settings=Settings(trellis=args.trellis),
        progress=progress,
    )
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    began = time.perf_counter()
    dense.tensors_of(artifact.decode(made.data)[0])
    result = machine() | {
        "weights": sum(t.numel() for t in synthetic.state.values()),
        "trellis": args.trellis,
        "pack_seconds": seconds,
        "pack_cpu_seconds": cpu,
        "trials": trials,
        "load_seconds": time.perf_counter() - began,
        "bytes": made.artifact_bytes,
        "headroom": made.headroom,
        "bits_per_weight": made.bits_per_weight,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    report.write_json(args.out, result)
    print(result)


if __name__ == "__main__":
    main()
