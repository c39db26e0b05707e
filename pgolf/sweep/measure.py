"""One point of a sweep, in whichever process it lands: pack, load what was packed, score it."""

from __future__ import annotations

import math
import sys
import time
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor, nn

from pgolf.common.one_thread import one_thread
from pgolf.errors import BudgetError, SettingError
from pgolf.fitting import packing
from pgolf.fitting.live import Live
from pgolf.loading import dense
from pgolf.models import usermodel
from pgolf.models.logits import Logits, logits_of
from pgolf.packer.format import artifact
from pgolf.quant.curvature.store import Curvature
from pgolf.scoring import bpb, evaluation
from pgolf.scoring.against import Beside
from pgolf.sweep import tuning
from pgolf.sweep.points import Point
from pgolf.sweep.setup import Setup

KL_TOKENS = 65_536  # of what is scored, on which the unquantized model runs beside: so many tell a KL to some per cent

_one_at_a_time = Lock()  # threads of a Dask worker would share one module


def measure(setup: Setup, point: Point | None) -> dict[str, Any]:
    """The figures of one point as JSON; of the checkpoint itself where `point` is None.

    A budget that the method cannot meet, or a setting that it does not read, is a result too: {"refused": why}. Raises
    any other PgolfError.
    """
    with _one_at_a_time:
        bench = _bench(setup)
        return bench.before() if point is None else bench.point(point)


@lru_cache(maxsize=1)
def _bench(setup: Setup) -> _Bench:
    return _Bench(setup)


class _Bench:
    """A checkpoint, its curvature, its model and the text: read once a process, packed and scored again and again."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        place = Path(setup.checkpoint)
        self.source = setup.maker.read(place)
        model = setup.maker.build(self.source.state_dict(), self.source.config, place)
        self.model = model.to(setup.device)
        self.unquantized: nn.Module | None = None
        self.curvature = Curvature.load(setup.curvature, setup.device) if setup.curvature else None
        self.text = evaluation.read_text(
            [Path(setup.data), *map(Path, setup.more)],
            tokenizer=Path(setup.tokenizer) if setup.tokenizer else None,
            sidecar_file=Path(setup.sidecar) if setup.sidecar else None,
            convention=setup.count,
            max_tokens=setup.max_tokens,
        )

    def before(self) -> dict[str, Any]:
        return self._score(self.source.state_dict()) | {
            "weights": sum(t.numel() for t in self.source.tensors.values()),
            "checkpoint_bytes": sum(t.numel() * t.element_size() for t in self.source.tensors.values()),
        }

    def point(self, point: Point) -> dict[str, Any]:
        how = point.how() | {"rules": self.setup.rules, "seed": self.setup.seed}
        try:
            with one_thread() if point.tune else nullcontext():  # tuned bytes would depend on how many a worker has
                made = packing.pack(self.source, None, curvature=self.curvature, text=self._live(point), **how)
        except (BudgetError, SettingError) as error:
            return {"refused": str(error)}
        began = time.perf_counter()
        state = dense.tensors_of(artifact.decode(made.data)[0])
        loaded = time.perf_counter() - began
        weights = sum(t.numel() for t in self.source.tensors.values())
        return self._score(state, beside=self._reference()) | {
            "bytes": made.artifact_bytes,
            "bits_per_weight": 8 * made.artifact_bytes / weights,
            "quantized_bits_per_weight": made.bits_per_weight,
            "predicted_rise": made.loss_rise,
            "step": made.step,
            "notes": list(made.notes),
            **({"tuned": asdict(made.tuned)} if made.tuned else {}),
            "pack_seconds": made.seconds,
            "load_seconds": loaded,
        }

    def _live(self, point: Point) -> Live | None:
        if point.tune is None:
            return None
        assert self.setup.texts is not None
        return tuning.load(tuning.path_in(Path(self.setup.texts), point.tune)).live(
            self._unquantized(), self.setup.logits
        )

    def _unquantized(self) -> nn.Module:
        """The model as it was, a module of its own, made when it is first needed."""
        if self.unquantized is None:
            module = self.setup.maker.build(self.source.state_dict(), self.source.config, Path(self.setup.checkpoint))
            self.unquantized = module.to(self.setup.device).eval()
        return self.unquantized

    def _reference(self) -> Logits:
        return logits_of(self._unquantized(), self.setup.logits)

    def _score(self, state: dict[str, Tensor], beside: Logits | None = None) -> dict[str, Any]:
        usermodel.load_state(self.model, state)
        logits = logits_of(self.model, self.setup.logits)
        losses = None if beside is None else Beside(beside, logits, KL_TOKENS)
        with (
            redirect_stdout(sys.stderr),
            one_thread(),
        ):  # the last digits do not depend on how many cores a worker found
            result = bpb.evaluate(
                logits,
                self.text.tokens,
                self.text.byte_counts,
                seq_len=self.setup.seq_len,
                stride=self.setup.stride,
                max_tokens=self.setup.max_tokens,
                batch_size=8 if self.setup.device == "cpu" else 64,
                device=self.setup.device,
                losses=losses,
            )
        assert math.isfinite(result.bpb)
        return ({} if losses is None else _divergence_of(losses)) | {
            "bpb": result.bpb,
            "loss": result.loss,
            "tokens": result.tokens,
            "text_bytes": result.bytes,
            "score_seconds": result.seconds,
        }


def _divergence_of(losses: Beside) -> dict[str, Any]:
    found = losses.figures().divergence()
    return {
        "kl": found.kl,
        "kl_error": found.kl_error,
        "kl_rare": found.kl_rare,
        "same_top": found.same_top,
        "kl_tokens": found.tokens,
    }
