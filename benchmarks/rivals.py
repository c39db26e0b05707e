"""Bytes at equal KL on one model: every rival that a processor can run, beside pgolf on the same weights.

    python benchmarks/rivals.py [--ckpt C [--model F.py:NAME]] [--calib-tokens 20480] [--max-tokens 16384] [--out RESULT.json]

The model is golf3m, or any checkpoint or folder of transformers whose tokens are those of the shards. Runs in an environment that
has what it is to compare (gguf, hqq, torchao, optimum-quanto, nncodec; auto-round, which takes folders only). Each rival
quantizes all matrices, the slices of a bank one by one; its bytes are those of a file as it is, and with the best of zstd -22,
brotli -11 and xz -9e on its codes and scales, together or apart, whichever zstd makes smaller. nncodec codes by itself. The
contest's packer, pgolf, AutoRound and what published.py rebuilds (but EntQuant) see calibration text, the others none. What pgolf
takes for a rival's KL is read off its own curve, log KL linear in bytes between packs, and is null beyond its ends. The result is
written after every point, and points that it holds are not made again; at the end all are drawn beside it.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import brotli
import torch
import zstandard
from torch import Tensor

from benchmarks import bytes_kl, published
from benchmarks.common import RESULTS, machine
from benchmarks.heldout import HeldOut, add_options
from benchmarks.rival_autoround import KINDS, by_autoround
from benchmarks.rival_quantizers import (
    Coded,
    Quantizer,
    apart,
    by_nncodec,
    of_gguf,
    quantized,
    rivals,
    together,
    versions,
)
from pgolf import report
from pgolf.fitting import packing
from pgolf.fitting.baselines import CONTEST_K, contest
from pgolf.loading import dense
from pgolf.models import transformers_model
from pgolf.packer.format import artifact
from pgolf.quant import Settings
from pgolf.quant.curvature.collect import calibrate
from pgolf.quant.curvature.store import Curvature

CODERS = {
    "zstd": zstandard.ZstdCompressor(level=22).compress,
    "brotli": lambda data: brotli.compress(data, quality=11, lgwin=24),
    "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}
OURS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.5, 6.0, 8.0)  # bits a weight, everything counted
QPS = (-18, -22, -26, -30, -34)  # of nncodec: a step doubles every four
FIRST = (
    *(
        "pgolf 3.0 bits",
        "nncodec qp -30",
        "hqq int4 g64",
        "gguf Q4_0",
        "torchao int4 g32",
        "quanto qint4",
        "pgolf 2.0 bits",
    ),
    *("pgolf 4.5 bits", "contest k=12.85", "nncodec qp -26", "hqq int3 g64", "torchao int3 g32", "pgolf 1.5 bits"),
    *("WaterSIC step 1.0", "CERWU step 1.0", "EntQuant step 0.25"),
)
PACKAGES = ("transformers", "gguf", "hqq", "torchao", "optimum-quanto", "nncodec", "auto-round", "zstandard", "brotli")


def compressed(parts: Sequence[Coded], rest: bytes) -> tuple[int, str]:
    """(bytes, coder and layout) of what makes a rival's file smallest."""
    layouts = {
        "packed": [b"".join([*(part.packed for part in parts), rest])],
        "apart": [b"".join(part.codes for part in parts), b"".join([*(part.side for part in parts), rest])],
    }
    fast = zstandard.ZstdCompressor(level=9).compress
    layout = min(layouts, key=lambda name: sum(len(fast(data)) for data in layouts[name]))
    sizes = {name: sum(len(coder(data)) for data in layouts[layout]) for name, coder in CODERS.items()}
    best = min(sizes, key=lambda name: sizes[name])
    return sizes[best], f"{best}, {layout}"


def bytes_at(curve: Sequence[tuple[int, float]], kl: float) -> float | None:
    """Where a curve of (bytes, KL), smallest first, has a KL; None beyond its ends."""
    for (small, far), (large, near) in pairwise(curve):
        if near <= kl <= far:
            return small + (large - small) * math.log(far / kl) / math.log(far / near)
    return None


class Rivals:
    """The bench and its points, each made once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.bench = args, HeldOut(args)
        modules = self.bench.model.named_modules()
        self.turned = {f"{name}.weight" for name, module in modules if type(module).__name__ == "Conv1D"}  # of GPT-2
        self.parts = apart(self.bench.source.tensors, self.turned)
        published.known()
        self.rows: list[dict[str, Any]] = json.loads(args.out.read_text())["rows"] if args.out.is_file() else []

    @cached_property
    def curvature(self) -> Curvature:
        self.bench.restore()
        text = self.bench.training_text(self.args.calib_tokens, 0)
        return calibrate(self.bench.model, text, seed=0)

    def has(self, name: str) -> bool:
        return any(row["name"] == name for row in self.rows)

    def add(self, name: str, state: dict[str, Tensor], **facts: Any) -> None:
        kl, rise = self.bench.score(state)
        self.rows.append({"name": name, **facts, "kl": kl, "rise": rise})
        print(self.rows[-1], flush=True)
        self.write()

    def write(self) -> None:
        curve = sorted((row["bytes"], row["kl"]) for row in self.rows if row["name"].startswith("pgolf"))
        for row in self.rows:
            ours = bytes_at(curve, row["kl"])
            row["pgolf_bytes_at_equal_kl"] = None if ours is None else round(ours)
            row["bpb_rise"] = row["rise"] * self.bench.bits_of_a_nat
        facts = {"checkpoint": self.args.ckpt.name, "weights": self.bench.weights, "tokens": self.bench.ids.numel()}
        facts |= {"calibration_tokens": self.args.calib_tokens, "versions": versions(PACKAGES)}
        report.write_json(self.args.out, machine() | facts | {"rows": self.rows})

    def pack(self, name: str, *, blind: bool = False, **how: Any) -> None:
        made = packing.pack(self.bench.source, None, curvature=None if blind else self.curvature, **how)
        self.add(name, dense.tensors_of(artifact.decode(made.data)[0]), bytes=made.artifact_bytes)

    def autoround(self, name: str, bits: int, group: int) -> None:
        """On the text that pgolf sees; the table, and a head of its own, by gguf."""
        self.bench.restore()
        tuned = by_autoround(self.bench.model, self.bench.training_text(self.args.calib_tokens, 0), bits, group)
        self.quantize(name, of_gguf("Q8_0"), torch.float16, tuned)

    def quantize(
        self, name: str, quantize: Quantizer, vectors: torch.dtype, known: dict[str, Coded] | None = None
    ) -> None:
        parts, rest, made = quantized(self.parts, quantize, vectors, known)
        size, by = compressed(parts, rest)
        plain = sum(len(part.packed) for part in parts) + len(rest)
        self.add(name, self.whole(made), plain_bytes=plain, bytes=size, coder=by)

    def nncodec(self, name: str, qp: int) -> None:
        stream, made = by_nncodec(self.parts, qp)
        self.add(name, self.whole(made), plain_bytes=len(stream), bytes=len(stream), coder="its own")

    def whole(self, made: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a rival made of the parts, under all names of the model."""
        source = self.bench.source
        return replace(source, tensors=together(made, source.tensors, self.turned)).state_dict()

    def points(self) -> dict[str, Callable[[], None]]:
        """What makes each point, by name; the most telling first, so that a run that is broken off says most."""
        found: dict[str, Callable[[], None]] = {}
        for bits in OURS:
            name = f"pgolf {bits} bits"
            found[name] = partial(self.pack, name, budget=int(bits * self.bench.weights / 8))
        for qp in QPS if find_spec("nncodec") else ():
            name = f"nncodec qp {qp}"
            found[name] = partial(self.nncodec, name, qp)
        for name, quantize, vectors in rivals():
            found[name] = partial(self.quantize, name, quantize, vectors)
        theirs = find_spec("auto_round") and transformers_model.is_theirs(self.bench.source.config)
        for bits, group in KINDS if theirs else ():
            name = f"AutoRound int{bits} g{group}"
            found[name] = partial(self.autoround, name, bits, group)
        for k in CONTEST_K[:3]:
            name = f"contest k={k}"
            found[name] = partial(self.pack, name, **contest(k))
        for paper, method, steps in published.ROWS:
            for step in steps:
                name = f"{paper} step {step}"
                how = {"method": method, "settings": Settings(step=step), "blind": method == "entquant"}
                found[name] = partial(self.pack, name, **how)
        telling = [name for name in FIRST if name in found]
        return {name: found[name] for name in dict.fromkeys([*telling, *found])}

    def all(self) -> None:
        for name, make in self.points().items():
            if not self.has(name):
                make()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.set_defaults(seq_len=512, max_tokens=16384)
    parser.add_argument("--calib-tokens", type=int, default=20480)
    parser.add_argument("--out", type=Path, default=RESULTS / "rivals_golf3m.json")
    args = parser.parse_args()
    found = Rivals(args)
    found.all()
    bytes_kl.draw(found.rows, args.out.with_suffix(".png"))
    print("\n".join(bytes_kl.table(found.rows)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
