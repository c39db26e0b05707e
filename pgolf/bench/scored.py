"""`pgolf eval` on the device: of a dense model, of its artifact loaded dense, and packed."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgolf.bench.sizes import Sizes
from pgolf.fitting import packing
from pgolf.loading.modules import load_module
from pgolf.models.logits import logits_of
from pgolf.quant.settings import Settings
from pgolf.scoring import bpb
from pgolf.scoring.static import StaticLosses, to_device
from pgolf.train.model.gpt import GPT, PRESETS


def evaluation(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Tokens a second and MFU of `pgolf eval`: of a dense model, of its artifact loaded dense, and packed."""
    config = PRESETS[sizes.preset]
    count = sizes.batches * sizes.batch * sizes.seq_len + 1
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, count).astype(np.uint16)
    models = {name: GPT(config) for name in ("dense", "artifact", "packed")}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pgolf"
        packing.pack(models["dense"], file, method="sdclip", settings=Settings(bits=6))
        for name in ("artifact", "packed"):
            load_module(file, models[name], packed=name == "packed")
    weights = sum(parameter.numel() for parameter in models["dense"].parameters())
    flops = 2 * weights + 2 * config.layers * config.dim * sizes.seq_len
    facts = {name: _scored(model, tokens, device, sizes) for name, model in models.items()}
    for row in facts.values():
        row["mfu"] = row["tokens_per_second"] * flops / (sizes.peak_tflops * 1e12)
    return facts


def _scored(model: GPT, tokens: NDArray[np.uint16], device: torch.device, sizes: Sizes) -> dict[str, float]:
    logits = logits_of(to_device(model, device))
    compiled = device.type == "cuda"
    fast = StaticLosses(model, logits, seq_len=sizes.seq_len, batch_size=sizes.batch, compile=compiled)
    began = time.perf_counter()
    bpb.score_windows(logits, tokens, seq_len=sizes.seq_len, batch_size=sizes.batch, losses=fast, device=device)
    seconds = time.perf_counter() - began - fast.compile_seconds
    return {"tokens_per_second": (len(tokens) - 1) / seconds, "compile_seconds": fast.compile_seconds}
