"""Our coder against the ones people use, on the same integer codes: bytes and processor seconds.

    python benchmarks/coder.py [--data golf3m-sdclip golf3m-one-step contest] [--coders pgolf brotli-11 ...] [--json OUT]

Data: `golf3m-*` are the matrices of a trained 3.2M model (../shared/data, left out where it is absent), quantized with
SDClip's step k·std/31, k = 12.85, a row or a tensor; `contest` are 36M synthetic codes in the contest's shapes with
lognormal row and column spreads. Ours counts the whole artifact, names and checksums too; the others their bare
streams of all matrices, each at its narrowest width. With --json, rows measured earlier and not now are kept.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import platform
import resource
import shutil
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import zstandard

from pgolf import packer
from pgolf.packer.coder import codec, general
from pgolf.packer.coder.classes import entropy_bits
from pgolf.packer.format import artifact
from pgolf.packer.plane import Plane

Codes = dict[str, np.ndarray]
GOLF3M = Path(__file__).resolve().parents[2] / "shared" / "data" / "golf3m" / "ckpt.pt"
STEP_IN_STD = 12.85 / 31


def golf3m(per_row: bool) -> Codes:
    """The matrices of golf3m, rounded with one step a row (clipped to int6 as SDClip does) or one a tensor."""
    import torch

    from pgolf.quant import METHODS, Settings

    weights = torch.load(GOLF3M, weights_only=True)
    matrices = {name: w.float() for name, w in weights.items() if w.dim() == 2}
    if per_row:
        return {n: METHODS["sdclip"].quantize(w, None, Settings(method="sdclip")).codes for n, w in matrices.items()}
    return {n: (w / (STEP_IN_STD * w.std())).round().to(torch.int32).numpy() for n, w in matrices.items()}


def contest() -> Codes:
    """11 layers, d 512, 8 heads and 4 for keys and values, MLP 4x, vocabulary 8192."""
    rng = np.random.default_rng(0)
    layer = {"q": (512, 512), "k": (256, 512), "v": (256, 512), "o": (512, 512), "up": (2048, 512), "down": (512, 2048)}
    shapes = {"embed": (8192, 512)} | {f"{i:02}.{name}": s for i in range(11) for name, s in layer.items()}
    return {name: _lognormal(rng, *shape) for name, shape in shapes.items()}


def _lognormal(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    r, c = np.exp(rng.normal(0, 0.3, rows)), np.exp(rng.normal(0, 0.4, cols))
    noise = rng.standard_normal((rows, cols), np.float32)
    return np.rint(noise * (r[:, None] / STEP_IN_STD * c)).astype(np.int32)


DATA: dict[str, Callable[[], Codes]] = {
    "golf3m-sdclip": lambda: golf3m(True),
    "golf3m-one-step": lambda: golf3m(False),
    "contest": contest,
}


@dataclass(frozen=True)
class Coder:
    """encode(codes) -> anything with a length in bytes; decode(that) undoes it. once: too slow to be repeated."""

    encode: Callable[[Codes], Any]
    decode: Callable[[Any], Any]
    once: bool = False


def narrow(codes: Codes) -> bytes:
    """Every matrix at its narrowest width, one after another."""
    return b"".join(c.astype("<i1" if np.abs(c).max(initial=0) < 128 else "<i2").tobytes() for c in codes.values())


def shuffled(codes: Codes) -> bytes:
    """All codes as 16 bits: low bytes, then high bytes."""
    return general.shuffled(b"".join(c.astype("<i2").tobytes() for c in codes.values()), 2)


def compiled(on: bool, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`function` with or without the compiled loops."""

    def run(argument: Any) -> Any:
        os.environ["PGOLF_COMPILED"] = str(int(on))
        return function(argument)

    return run


def one_table(codes: Codes) -> list[Any]:
    """constriction's ANS with one exact histogram a matrix; a table counts two bytes a symbol."""
    import constriction

    out = []
    for matrix in codes.values():
        low = int(matrix.min())
        counts = np.bincount((matrix - low).ravel())
        model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse((matrix - low).ravel().astype(np.int32), model)
        out.append((coder.get_compressed(), model, matrix.size, 2 * len(counts)))
    return out


def one_table_decode(streams: list[Any]) -> None:
    import constriction

    for words, model, size, _ in streams:
        constriction.stream.stack.AnsCoder(words).decode(model, size)


def lrzip(arguments: list[str]) -> Callable[[bytes], bytes]:
    """A run of the lrzip binary over bytes."""

    def run(data: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "in.lrz"), Path(folder, "out")
            source.write_bytes(data)
            subprocess.run(["lrzip", "-q", "-f", *arguments, "-o", target, source], check=True, capture_output=True)
            return target.read_bytes()

    return run


CODERS = {
    "pgolf": Coder(compiled(True, packer.encode), compiled(True, packer.decode)),
    "pgolf, plain numpy": Coder(compiled(False, packer.encode), compiled(False, packer.decode)),
    "ANS, one table a matrix": Coder(one_table, one_table_decode),
    "lrzip -z": Coder(lambda c: lrzip(["-z"])(narrow(c)), lrzip(["-d"]), once=True),
    "brotli-11": Coder(lambda c: brotli.compress(narrow(c), lgwin=24), brotli.decompress, once=True),
    "brotli-11, shuffled": Coder(lambda c: brotli.compress(shuffled(c), lgwin=24), brotli.decompress, once=True),
    "zstd-22": Coder(
        lambda c: zstandard.ZstdCompressor(level=22).compress(narrow(c)),
        lambda data: zstandard.ZstdDecompressor().decompress(data),
        once=True,
    ),
    "lzma": Coder(lambda c: lzma.compress(narrow(c), preset=9 | lzma.PRESET_EXTREME), lzma.decompress, once=True),
    "zlib-9": Coder(lambda c: zlib.compress(narrow(c), 9), zlib.decompress, once=True),
}


def size_of(encoded: Any) -> int:
    """Bytes of what a coder returned."""
    if isinstance(encoded, bytes):
        return len(encoded)
    return sum(4 * len(words) + table for words, _, _, table in encoded)


def timed(function: Callable[[Any], Any], argument: Any, runs: int) -> tuple[Any, float, float]:
    """(result, best processor seconds, best wall seconds), children and threads included."""
    seconds, walls, result = [], [], None
    for _ in range(runs):
        used, wall = processor_seconds(), time.perf_counter()
        result = function(argument)
        seconds.append(processor_seconds() - used)
        walls.append(time.perf_counter() - wall)
    return result, min(seconds), min(walls)


def processor_seconds() -> float:
    """Of this process and its children so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usages)


def measure(coder: Coder, codes: Codes, runs: int) -> dict[str, float]:
    """One row of the table."""
    encoded, encode, encode_wall = timed(coder.encode, codes, 1 if coder.once else runs)
    _, decode, decode_wall = timed(coder.decode, encoded, 1 if coder.once else runs)
    return {
        "bytes": size_of(encoded),
        "encode_seconds": encode, "encode_wall_seconds": encode_wall,
        "decode_seconds": decode, "decode_wall_seconds": decode_wall,
    }  # fmt: skip


def ideal_bytes(codes: Codes) -> dict[str, float]:
    """What ideal coders would take: with one exact histogram a matrix, and with our classes' exact histograms."""
    packed = codec.encode([Plane(c.astype(np.int32)) for c in codes.values()])
    counts = [np.unique(c, return_counts=True)[1][None] for c in codes.values()]
    streams = {name: len(general.compress(d, 1, _codecs(name)).data) for name, d in packed.sections.items()}
    coded = sum(streams.get(f"codes.{part}", 0) for part in ("words", "lanes", "aside", "escapes"))
    whole = len(artifact.encode({}).data) + sum(streams.values()) + len(json.dumps(packed.head))
    return {
        "one_histogram_a_matrix": sum(map(entropy_bits, counts)) / 8,
        "our_classes": packed.ideal_bits / 8,
        "our_codes_over_ideal": coded / (packed.ideal_bits / 8) - 1,
        "our_side_bits_a_weight": 8 * (whole - coded) / sum(c.size for c in codes.values()),
    }


def _codecs(section: str) -> tuple[str, ...]:
    return ("stored",) if section.endswith((".words", ".aside")) else general.BEST


def show(name: str, result: dict[str, Any]) -> None:
    """One data set's table."""
    ideal = result["ideal"]
    print(f"\n{name}: {result['weights']:,} codes")
    print(f"  ideal, one histogram a matrix {ideal['one_histogram_a_matrix']:>14,.0f} B")
    print(f"  ideal, our classes            {ideal['our_classes']:>14,.0f} B", end="")
    print(f"; ours {ideal['our_codes_over_ideal']:+.3%}, side {ideal['our_side_bits_a_weight']:.4f} bits a weight")
    print(f"  {'coder':<26}{'bytes':>12}{'/ ideal':>9}{'encode s':>10}{'decode s':>10}   (processor seconds)")
    for coder, row in sorted(result["coders"].items(), key=lambda item: item[1]["bytes"]):
        ratio = row["bytes"] / ideal["our_classes"]
        print(
            f"  {coder:<26}{row['bytes']:>12,}{ratio:>9.4f}{row['encode_seconds']:>10.2f}{row['decode_seconds']:>10.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--coders", nargs="+", choices=CODERS, default=list(CODERS))
    parser.add_argument("--runs", type=int, default=5, help="the best of so many; slow coders run once")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"data": {}}
    if arguments.json and arguments.json.exists():
        results = json.loads(arguments.json.read_text())
    cpu = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), ""
    )
    results |= {"date": time.strftime("%Y-%m-%d"), "machine": f"{cpu}, {os.cpu_count()} cores, {platform.platform()}"}
    for name in arguments.data:
        if name != "contest" and not GOLF3M.exists():
            print(f"{name}: left out, {GOLF3M} is not there")
            continue
        codes = DATA[name]()
        old = results["data"].get(name, {}).get("coders", {})
        result = {"weights": sum(c.size for c in codes.values()), "ideal": ideal_bytes(codes), "coders": old}
        for coder in arguments.coders:
            if coder == "lrzip -z" and not shutil.which("lrzip"):
                print("lrzip -z: left out, the binary is not installed")
                continue
            result["coders"][coder] = measure(CODERS[coder], codes, arguments.runs)
        results["data"][name] = result
        show(name, result)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
