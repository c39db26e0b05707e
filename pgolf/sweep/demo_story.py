"""`pgolf demo`: train a small model on text that Python carries, pack it, load it back, score it before and after.

Every figure of its table and plot is measured in this run and kept in results.json beside the artifacts.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

from torch import nn

from pgolf import report
from pgolf.common import extras
from pgolf.common.one_thread import one_thread
from pgolf.common.progress import Progress
from pgolf.data import shards, tokenizers
from pgolf.fitting import baselines, packing
from pgolf.loading import dense
from pgolf.models import checkpoint, usermodel
from pgolf.models.checkpoint import Checkpoint
from pgolf.models.logits import Logits
from pgolf.quant.curvature.collect import calibrate
from pgolf.quant.curvature.store import Curvature
from pgolf.report.plots import frontier_png
from pgolf.scoring import bpb
from pgolf.train.loop.demo_model import DEMO, TINY_DEMO, prepare_demo, train_demo
from pgolf.train.model import rebuild

BITS = (2.0, 2.6, 3.3)  # budgets of the curve, in bits a weight
QUICK_BITS = (2.6,)
CALIBRATION_TOKENS = 32768
SCORED_TOKENS = 100_000


def run(
    out: str | Path, *, seed: int = 0, quick: bool = False, device: str = "cpu", progress: Progress
) -> dict[str, Any]:
    """Do it all in the folder `out`; the results, which are also out/results.json (and plotted in out/frontier.png).

    device: where the model is trained, calibrated and scored.
    """
    extras.need("numba", "scipy", "sentencepiece", "matplotlib")
    out = Path(out)
    settings = TINY_DEMO if quick else DEMO
    began = time.perf_counter()
    files = prepare_demo(out, settings)
    with one_thread():  # matrices this small gain nothing from a second one, and the result cannot depend on it
        ckpt = train_demo(
            out,
            seed=seed,
            settings=settings,
            device=device,
            progress=lambda step: progress("train", step.step + 1, settings.train.steps or 0),
        )
    trained = time.perf_counter() - began
    source = checkpoint.read(ckpt)
    score = _Scorer(source, files.val, files.tokenizer, settings.seq_len, progress, device)
    sampler = shards.WindowSampler(
        [shards.read_shard(files.train)], settings.seq_len, CALIBRATION_TOKENS // settings.seq_len, seed
    )
    curvature = calibrate(
        score.model, sampler.batch(0)[:, :-1], seed=seed, progress=lambda d, t: progress("calibrate", d, t or 0)
    )
    before = score.of(source.state_dict())
    points = _points(out, source, curvature, score, progress, QUICK_BITS if quick else BITS)
    points = [p | {"rise": p["bpb"] - before} for p in points]
    result = {
        "seed": seed,
        "weights": sum(t.numel() for t in source.tensors.values()),
        "checkpoint_bytes": ckpt.stat().st_size,
        "bpb_before": before,
        "train_seconds": trained,
        "seconds": time.perf_counter() - began,
        "points": points,
    }
    report.write_json(out / "results.json", result)
    shown = {"points": points, "before": {"bpb": before}, "baseline": points[0]["series"]}
    frontier_png(shown, out / "frontier.png", title="pgolf demo: quality bought by bytes")
    return result


def _points(
    out: Path,
    source: Checkpoint,
    curvature: Curvature,
    score: _Scorer,
    progress: Progress,
    curve: tuple[float, ...],
) -> list[dict[str, Any]]:
    """The contest's packer as it is, ours at its size, then both along the curve."""
    weights = sum(t.numel() for t in source.tensors.values())
    contest = _point(out / "contest.pgolf", "contest packer", source, curvature, score, progress, baselines.contest())
    budgets = [contest["bytes"], *(int(weights * bits / 8) for bits in curve)]
    ours = [
        _point(out / f"pgolf-{i}.pgolf", "pgolf", source, curvature, score, progress, {"budget": budget})
        for i, budget in enumerate(budgets)
    ]
    looser = baselines.contest(24)
    return [
        contest,
        _point(out / "contest-1.pgolf", "contest packer", source, curvature, score, progress, looser),
        *ours,
    ]


def _point(
    path: Path,
    name: str,
    source: Checkpoint,
    curvature: Curvature,
    score: _Scorer,
    progress: Progress,
    how: dict[str, Any],
) -> dict[str, Any]:
    made = packing.pack(source, path, curvature=curvature, progress=progress, **how)
    began = time.perf_counter()
    state = dense.load(path)
    loaded = time.perf_counter() - began
    return {
        "series": name,
        "file": path.name,
        "budget": made.budget,
        "bytes": made.artifact_bytes,
        "bits_per_weight": made.bits_per_weight,
        "bpb": score.of(state),
        "pack_seconds": made.seconds,
        "load_seconds": loaded,
    }


class _Scorer:
    """Held-out bits per byte of any weights of the demo's model."""

    def __init__(
        self, source: Checkpoint, val: Path, tokenizer: Path, seq_len: int, progress: Progress, device: str
    ) -> None:
        self.model: nn.Module = rebuild.from_config(source.config or {}, source.state_dict()).to(device)
        self.tokens: shards.Tokens = shards.read_shard(val)
        self.counts = tokenizers.stream_bytes(self.tokens, tokenizers.token_bytes(tokenizer))
        self.seq_len, self.progress = seq_len, progress

    def of(self, state: dict[str, Any]) -> float:
        usermodel.load_state(self.model, state)
        return bpb.evaluate(
            cast(Logits, self.model.forward_logits),
            self.tokens,
            self.counts,
            seq_len=self.seq_len,
            max_tokens=SCORED_TOKENS,
            progress=lambda done, total: self.progress("score", done, total),
        ).bpb
