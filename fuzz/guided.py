"""Coverage-guided fuzzing of one target with atheris: `python -m fuzz.guided TARGET MINUTES`.

What will surprise you: coverage is recorded only for modules imported under `instrument_imports`, hence the late import
and the first reading of the seeds there: readers import what they need when they are called.
New inputs that reach new code go to fuzz/found/TARGET (not kept in the repository), crashes to fuzz/corpus/TARGET.
"""

from __future__ import annotations

import sys
import zlib

import numpy as np

COMPILED = [
    "pgolf.packer.backends.rans_numba",
    "pgolf.quant.rounding.viterbi",
]  # numba cannot compile instrumented functions


def main(name: str, minutes: float) -> None:
    import atheris

    with atheris.instrument_imports(include=["pgolf"], exclude=COMPILED):
        from fuzz.run import CORPUS, FOUND, Broken, keep, outcome
        from fuzz.targets import TARGETS

        target = TARGETS[name]
        for seed in target.seeds():
            target.read(seed)
    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (found / f"seed-{zlib.crc32(seed):08x}").write_bytes(seed)

    def one(data: bytes) -> None:
        try:
            outcome(target, data)
        except Broken:
            keep(name, data)
            raise

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        """Half of the time ours, which knows the checksums, else libFuzzer's own."""
        if data and seed % 2:
            try:
                return target.mutators[-1](data, np.random.default_rng(seed))[:max_size]
            except Exception:
                pass  # ours expects an honest artifact to start from
        return atheris.Mutate(data, max_size)

    arguments = [f"-max_total_time={round(60 * minutes)}", "-max_len=65536", "-rss_limit_mb=4096", str(found)]
    corpus = CORPUS / name
    atheris.Setup([sys.argv[0], *arguments, *([str(corpus)] if corpus.is_dir() else [])], one, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
