"""What comes before the first byte of an artifact: curvature and rounding, where the model is."""

from __future__ import annotations

import time

import numpy as np
import torch

from pgolf.bench import clock
from pgolf.bench.sizes import Sizes
from pgolf.common.threads import on_threads
from pgolf.quant.curvature.collect import calibrate
from pgolf.quant.methods import auto
from pgolf.quant.settings import Settings
from pgolf.train.model.gpt import GPT, PRESETS

BATCHES = 2  # of calibration: 65,536 tokens at the real size


def fitting(device: torch.device, sizes: Sizes) -> dict[str, float]:
    """Seconds of the curvature of a model that was never trained, and of `auto` rounding of all of its matrices, once."""
    config = PRESETS[sizes.preset]
    model = GPT(config).to(device)
    shape = BATCHES, sizes.batch, sizes.seq_len
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, config.vocab_size, shape))
    began = time.perf_counter()
    curvature = calibrate(model, list(ids.to(device)))
    clock.wait()
    between = time.perf_counter()
    matrices = {name: p.detach().cpu() for name, p in model.named_parameters() if p.dim() == 2}
    known = [(curvature.matrices(name) or [None])[0] for name in matrices]
    on_threads(lambda weight, found: auto.quantize(weight, found, Settings()), list(matrices.values()), known)
    ended = time.perf_counter()
    return {
        "weights": sum(weight.numel() for weight in matrices.values()),
        "tokens": ids.numel(),
        "curvature_seconds": between - began,
        "rounding_seconds": ended - between,
        "seconds": ended - began,
    }
