"""What comes before the first byte of an artifact: curvature and rounding, where the model is."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
import torch

from pgolf.bench import clock, foreseen
from pgolf.bench.sizes import Sizes
from pgolf.fitting.inputs import job_of
from pgolf.quant.curvature.collect import calibrate
from pgolf.quant.settings import Settings
from pgolf.train.model.gpt import GPT, PRESETS

BATCHES = 2  # of calibration: 65,536 tokens at the real size


def fitting(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Seconds of the curvature of a model that was never trained, and of `auto` rounding of all of its matrices, once; what was
    foreseen of the rounding."""
    config = PRESETS[sizes.preset]
    model = GPT(config).to(device)
    shape = BATCHES, sizes.batch, sizes.seq_len
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, config.vocab_size, shape))
    began = time.perf_counter()
    curvature = calibrate(model, list(ids.to(device)))
    clock.wait()
    between = time.perf_counter()
    job = job_of(model, curvature, search=True)
    job.rounded(job.leaders, 1.0)
    ended = time.perf_counter()
    return {
        "weights": job.weights(job.quantized),
        "tokens": ids.numel(),
        "curvature_seconds": between - began,
        "rounding_seconds": ended - between,
        "rounding_foreseen": foreseen.rounding(Counter(map(job.matrix_of, job.leaders)), Settings().trellis),
        "seconds": ended - began,
    }
