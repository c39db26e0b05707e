"""What a calibrated pack costs as the model and the number of ranks grow: a small model of it, held to what was measured.

    python benchmarks/scale.py [--write]      prints the tables of docs/SCALE.md, or puts them there

Three constants are fitted to a model of 19M weights on one and two ranks of one thread (results/ranks.json), COPIES to the
memory of 36M weights (results/memory.json); everything else follows from shapes. The other points of the two files are foreseen,
not fitted. GPUs and several machines were not measured at all: their speeds are assumptions, named below.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import RESULTS, ROOT

PAGE = ROOT / "docs" / "SCALE.md"

FULL = 4096  # rows up to which all of G is kept, MAX_FULL_OUTPUTS of pgolf.quant.curvature.collect
FLOAT, CODE, TRIALS = 4, 1, 2  # bytes of a sum and of a code; positions of the knob that a search tries
FILED = 1 << 26  # weights from which sums and factors lie in files, pgolf.common.scratch.MANY
CHOLESKY = (
    30e9  # float64 operations a second of one thread of the machine here: Cholesky factors and triangular inverses
)

# Assumed, not measured
GPU = 20e12  # float32 operations a second of a GPU in passes and Gram matrices
THREADS = 8  # of a rank on a machine with 8 GPUs
WITHIN, BETWEEN = 2e9, 1e9  # bytes a second and rank of gloo within a machine and between machines


@dataclass(frozen=True)
class Shape:
    """A transformer of stock layers: width, heads' share of keys, inner width of the MLP, layers, pieces; gated or not."""

    name: str
    width: int
    keys: int
    inner: int
    layers: int
    vocabulary: int
    gated: bool = True

    @property
    def matrices(self) -> list[tuple[int, int, int]]:
        """(rows, columns, how many) of all that is rounded but the table."""
        d, n = self.width, self.layers
        return [(d, d, 2 * n), (self.keys, d, 2 * n), (self.inner, d, (1 + self.gated) * n), (d, self.inner, n)]

    @property
    def weights(self) -> int:
        return self.vocabulary * self.width + sum(r * c * n for r, c, n in self.matrices)

    @property
    def sums(self) -> int:
        """Numbers that calibration adds up: H plain and weighted, G where it is kept whole, of every matrix and the table."""
        table = 2 * self.width**2 + 2 * self.vocabulary
        return table + sum(n * (2 * c * c + r + (r * r if r <= FULL else r)) for r, c, n in self.matrices)

    @property
    def operations(self) -> float:
        """Of a calibration token: forward and backward passes, and the Gram matrices."""
        grams = sum(n * (4 * c * c + (2 * r * r if r <= FULL else 0)) for r, c, n in self.matrices)
        head = 4 * self.width**2  # of a tied table the diagonal of G is kept
        return 6 * self.weights + grams + head

    @property
    def factoring(self) -> float:
        """Float64 operations of the factors of all curvatures, done once, and of feeding errors back, in one trial."""
        return sum(n * (c**3 + (r**3 if r <= FULL else 0) + 2 * r * c * c) for r, c, n in self.matrices) + self.width**3


GOLF3M = Shape("golf3m", 256, 128, 768, 5, 1024, gated=False)
HALF = Shape("half", 512, 256, 2048, 5, 8192, gated=False)
CONTEST = Shape("contest", 512, 256, 2048, 11, 8192, gated=False)
QWEN = {  # of benchmarks/memory.py
    "3M": Shape("3M", 128, 64, 704, 6, 8192),
    "36M": Shape("36M", 256, 64, 1408, 15, 65536),
    "150M": Shape("150M", 512, 128, 2816, 15, 151936),
}
LARGE = [Shape("1B", 2048, 512, 8192, 16, 128256), Shape("10B", 4096, 1024, 14336, 44, 128256)]
TOKENS = 1 << 17  # of calibration of the large ones
COPIES = 5.3  # of the sums, in memory or files at once: the rank's own, all ranks', H and G of them, their factors
BASE = 0.5e9  # bytes of Python, torch and compiled loops


@dataclass(frozen=True)
class Constants:
    """operations: of passes and Gram matrices, a second and thread; rounding, serial: seconds a weight and thread, of what ranks
    share (in a trial, without the factors) and of what rank 0 does."""

    operations: float
    rounding: float
    serial: float


@dataclass(frozen=True)
class Cost:
    """Of a pack: seconds of the busiest rank; bytes of sums that a rank sends, of codes that rank 0 is sent, of a rank's
    memory, and of files that take its place where they are large."""

    calibrate: float
    pack: float
    sums_sent: float
    codes_sent: float
    memory: float
    files: float


def rows(model: str) -> dict[int, dict[str, Any]]:
    """What was measured of a model, by the number of ranks."""
    found = json.loads((RESULTS / "ranks.json").read_text())["models"]
    one = next(each for each in found if each["model"] == model)
    return {row["ranks"]: row | {"tokens": one["tokens"]} for row in one["rows"]}


def fitted() -> Constants:
    """The constants, of half of the contest's model on one and two ranks."""
    measured = rows(HALF.name)
    shared = 2 * (measured[1]["pack_busiest"] - measured[2]["pack_busiest"])
    return Constants(
        operations=measured[1]["tokens"] * HALF.operations / measured[1]["calibrate_busiest"],
        rounding=(shared - HALF.factoring / CHOLESKY) / (HALF.weights * TRIALS),
        serial=(measured[1]["pack_busiest"] - shared) / HALF.weights,
    )


def cost(shape: Shape, tokens: int, ranks: int, constants: Constants, *, threads: int = 1, gpu: bool = False) -> Cost:
    """Foreseen of a model on so many ranks; threads: of each; gpu: it calibrates on one."""
    speed, others = GPU if gpu else threads * constants.operations, (ranks - 1) / ranks
    work = shape.factoring / CHOLESKY + shape.weights * TRIALS * constants.rounding
    kept = COPIES * FLOAT * shape.sums
    filed = shape.weights >= FILED
    return Cost(
        calibrate=tokens * shape.operations / ranks / speed,
        pack=work / ranks / threads + shape.weights * constants.serial / threads,
        sums_sent=2 * others * FLOAT * shape.sums,
        codes_sent=others * TRIALS * CODE * shape.weights,
        memory=BASE + 2 * FLOAT * shape.weights + (0 if filed else kept),
        files=kept if filed else 0,
    )


def checked() -> Iterator[str]:
    """A table of what was measured beside what is foreseen."""
    yield "| model | weights | tokens | ranks | busiest rank, s: measured | of one rank's | foreseen | off by |"
    yield "|---|---|---|---|---|---|---|---|"
    for shape in (GOLF3M, HALF, CONTEST):
        for ranks, row in rows(shape.name).items():
            yield _compared(shape, row["tokens"], ranks, row["busiest"], row["busiest_ratio"])
    for point in _memory_points():
        yield _compared(QWEN[point["size"]], point["tokens"], 1, point["processor_seconds"], 1.0)


def _compared(shape: Shape, tokens: int, ranks: int, measured: float, ratio: float) -> str:
    found = cost(shape, tokens, ranks, fitted())
    foreseen = found.calibrate + found.pack
    cells = (
        shape.name,
        f"{shape.weights:,}",
        f"{tokens:,}",
        ranks,
        f"{measured:.1f}",
        f"{ratio:.2f}x",
        f"{foreseen:.1f}",
        f"{100 * (foreseen / measured - 1):+.0f}%",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _memory_points() -> list[dict[str, Any]]:
    """Calibrated packs of one process with the trellis, of models that are searched whole: the costs know of no sample."""
    points = json.loads((RESULTS / "memory.json").read_text())["points"]
    return [p for p in points if p["calib"] == "random" and not p["more"] and p["size"] in QWEN]


def memory() -> Iterator[str]:
    """A table of peaks of anonymous memory, measured and foreseen."""
    constants = fitted()
    yield "| model | weights | anonymous memory, GB: measured | foreseen |"
    yield "|---|---|---|---|"
    for point in _memory_points():
        shape, measured = QWEN[point["size"]], point["peak_anonymous"] / 1e9
        foreseen = cost(shape, point["tokens"], 1, constants)
        yield f"| {shape.name} | {shape.weights:,} | {measured:.1f} | {(foreseen.memory + foreseen.files) / 1e9:.1f} |"


def extrapolated() -> Iterator[str]:
    """A table of what was not measured."""
    constants = fitted()
    yield "| model | GPUs | calibrate, s | sums, GB a rank: s | pack, s | codes, GB to rank 0: s | memory, GB | files, GB |"
    yield "|---|---|---|---|---|---|---|---|"
    for shape in LARGE:
        for machines in (1, 4):
            found = cost(shape, TOKENS, 8 * machines, constants, threads=THREADS, gpu=True)
            speed = WITHIN if machines == 1 else BETWEEN
            sums, codes = (f"{sent / 1e9:,.0f}: {sent / speed:,.0f}" for sent in (found.sums_sent, found.codes_sent))
            sizes = f"{found.memory / 1e9:,.0f} | {found.files / 1e9:,.0f}"
            yield f"| {shape.name} | {8 * machines} | {found.calibrate:,.0f} | {sums} | {found.pack:,.0f} | {codes} | {sizes} |"


def tables() -> list[list[str]]:
    """All of them, each as its lines."""
    return [list(table) for table in (checked(), memory(), extrapolated())]


def written(page: str) -> str:
    """A page with the tables of today in place of those that begin in the same way."""
    lines = page.split("\n")
    for table in tables():
        start = lines.index(table[0])
        end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
        lines[start:end] = table
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text()))
    else:
        print("\n\n".join("\n".join(table) for table in tables()))


if __name__ == "__main__":
    main()
