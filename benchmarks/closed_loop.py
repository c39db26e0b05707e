"""What `--tune` buys: KL and rise of the loss at equal bytes, against the open loop's artifact and the contest's packer.

    python benchmarks/closed_loop.py [--bytes 1073700,1378600,900000] [--tune 1.5M] [--seeds 1] [--calib shard|self]
        [--contest] [--other FILE] [--keep DIR] [--out RESULT.json]

On golf3m of ../shared/data, or on what --ckpt names. Rows are added to those that RESULT.json has; a row that is there is
not made again. --contest: the contest's packer at its own bytes, as it is and with its weights tuned around its codes by the
same steps, beside `auto` and `auto` tuned at those bytes. --other: text of another kind (source code, say), in tokens of
--tokenizer, on which both are scored too. --keep: a folder for the artifacts, named by what was asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import GOLF3M, RESULTS, machine
from benchmarks.heldout import HeldOut, add_options
from pgolf import report
from pgolf.data.encoding import encoded, encoder
from pgolf.data.text import documents
from pgolf.fitting import packing
from pgolf.fitting.baselines import HOME_K, contest
from pgolf.fitting.closed.tune import tokens_of
from pgolf.fitting.live import Live
from pgolf.loading import dense
from pgolf.packer.format import artifact
from pgolf.quant.curvature import selftext
from pgolf.quant.curvature.collect import calibrate
from pgolf.quant.curvature.store import Curvature
from pgolf.quant.settings import Settings

OWN_TEXT = 163_840  # tokens that the model writes, to be read again and again


class Closed:
    """The bench with curvature and text for one seed at a time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.bench = args, HeldOut(args)
        self.other = self.bench.windows(self._foreign_text()) if args.other else None
        self._for: tuple[int, Curvature, Live] | None = None

    def _foreign_text(self) -> Tensor:
        """int64 [max_tokens + 1] of the text of another kind."""
        found = encoded(documents(self.args.other), encoder(self.args.tokenizer), most=self.args.max_tokens + 1)
        return torch.from_numpy(found.tokens.astype(np.int64))

    def known(self, seed: int) -> tuple[Curvature, Live]:
        """Curvature of 32,768 tokens, and text: held back, and to tune on."""
        if self._for is None or self._for[0] != seed:
            bench, tokens = self.bench, tokens_of(self.args.tune) or 0
            bench.restore()
            if self.args.calib == "self":
                rows = (min(tokens, OWN_TEXT) + 8192) // bench.seq_len
                text = selftext.self_generate(bench.model, sequences=rows, length=bench.seq_len, seed=seed)
            else:
                text = bench.training_text(tokens + 8192 + 32768, seed)
            held = 8192 // bench.seq_len
            curvature = calibrate(bench.model, text[held : held + 32768 // bench.seq_len], plain=True, seed=seed)
            more = text[held:] if self.args.calib == "self" else text[held + 32768 // bench.seq_len :]
            self._for = seed, curvature, Live(bench.model, text[:held], more)
        return self._for[1], self._for[2]

    def pack(self, seed: int, tune: int | str, **how: Any) -> dict[str, Any]:
        """Bytes, KL and rise on validation text of one pack."""
        self.bench.restore()
        curvature, live = self.known(seed)
        began = time.perf_counter()
        made = packing.pack(self.bench.source, None, curvature=curvature, text=live, tune=tune, seed=seed, **how)
        seconds = time.perf_counter() - began
        if self.args.keep:
            self.args.keep.mkdir(parents=True, exist_ok=True)
            (self.args.keep / f"{how.get('budget', 'contest')}-{tune}-{seed}.pgolf").write_bytes(made.data)
        state = dense.tensors_of(artifact.decode(made.data)[0])
        kl, rise = self.bench.score(state)
        told = {"notes": made.tuned.notes, "tokens": made.tuned.tokens} if made.tuned else {}
        if self.other:
            told["other"] = self.bench.score(state, self.other)._asdict()
        return {"bytes": len(made.data), "kl": kl, "rise": rise, "seconds": seconds} | told


def at_budget(closed: Closed, budget: int, seed: int) -> dict[str, Any]:
    """Open and closed loop in as many bytes."""
    how = {"budget": budget, "settings": Settings(trellis=closed.args.trellis)}
    opened, tuned = (closed.pack(seed, tune, **how) for tune in ("off", tokens_of(closed.args.tune)))
    return {"open": opened, "tuned": tuned, "ratio": tuned["kl"] / opened["kl"]}


def against_contest(closed: Closed, seed: int) -> dict[str, Any]:
    """The contest's packer and ours in its bytes, each as it is and tuned."""
    tokens, settings = tokens_of(closed.args.tune), Settings(trellis=closed.args.trellis)
    theirs = {
        name: closed.pack(seed, tune, **contest(HOME_K))
        for name, tune in (("contest", "off"), ("contest+tune", tokens))
    }
    size = theirs["contest"]["bytes"]
    ours = {
        name: closed.pack(seed, tune, budget=size, settings=settings)
        for name, tune in (("auto", "off"), ("auto+tune", tokens))
    }
    return theirs | ours | {"ratio": ours["auto+tune"]["kl"] / theirs["contest"]["kl"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.set_defaults(seq_len=512)
    parser.add_argument("--bytes", default="1073700,1378600,900000", help="budgets, separated by commas")
    parser.add_argument("--tune", default="1.5M")
    parser.add_argument("--seeds", default="0", help="separated by commas")
    parser.add_argument("--calib", choices=("shard", "self"), default="shard")
    parser.add_argument("--trellis", type=int, default=Settings().trellis)
    parser.add_argument("--contest", action="store_true")
    parser.add_argument("--other", type=Path, action="append", help="text of another kind")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=GOLF3M / "tokenizers" / "text_1024_bpe.model")
    parser.add_argument("--out", type=Path, default=RESULTS / "closed_loop.json")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(args.out.read_text())["rows"] if args.out.is_file() else []
    closed = Closed(args)
    for seed in map(int, args.seeds.split(",")):
        for budget in [0] if args.contest else map(int, args.bytes.split(",")):
            key = {"budget": budget, "tune": args.tune, "seed": seed, "calib": args.calib, "trellis": args.trellis}
            key |= {"other": [path.name for path in args.other]} if args.other else {}
            if any(row.items() >= key.items() for row in rows):
                continue
            rows.append(key | (against_contest(closed, seed) if args.contest else at_budget(closed, budget, seed)))
            print(rows[-1], flush=True)
            facts = {"checkpoint": args.ckpt.name, "tokens_scored": closed.bench.ids.numel(), "rows": rows}
            report.write_json(args.out, machine() | facts)


if __name__ == "__main__":
    main()
