"""AutoRound (arXiv 2309.05516) on a folder of transformers: roundings of all matrices between table and head, tuned on text.

Its settings are those that it has by itself (200 steps of signed gradients a block), but for bits, groups and the text. It leaves
the table and the head in half precision; who calls gives them to another rival.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.rival_quantizers import Coded, coded

BATCH = 8
KINDS = ((4, 128), (4, 32), (3, 64))  # bits, weights that share a scale


def by_autoround(model: nn.Module, ids: Tensor, bits: int, group: int) -> dict[str, Coded]:
    """Name of the weight -> what became of it, rows of outputs. ids: int64 [sequences, tokens] to tune on."""
    from auto_round import AutoRound  # optional

    rounder = AutoRound(
        copy.deepcopy(model),
        SimpleNamespace(
            pad_token=None, pad_token_id=None
        ),  # it wants one, and reads no more of it where text is token ids
        scheme="W4A16",
        bits=bits,
        group_size=group,
        dataset=list(ids.split(BATCH)),
        nsamples=len(ids),
        seqlen=ids.shape[1],
        batch_size=BATCH,
        device_map="cpu",
        enable_torch_compile=False,
        seed=0,
    )
    with torch.enable_grad():
        rounded, _ = rounder.quantize()
    layers = {
        name: layer for name, layer in rounded.named_modules() if isinstance(getattr(layer, "scale", None), Tensor)
    }
    return {f"{name}.weight": _coded(layer, bits, group) for name, layer in layers.items()}


def _coded(layer: nn.Module, bits: int, group: int) -> Coded:
    """Codes read back from weights that lie on the grid; scales in half precision, symmetric."""
    weight = layer.weight.detach().float()
    if type(layer).__name__ == "Conv1D":
        weight = weight.mT.contiguous()
    scale = layer.scale.float().reshape(len(weight), -1, 1)
    codes = (weight.reshape(len(weight), -1, group) / scale).round()
    half = scale.half().float()
    unsigned = (codes + (1 << bits - 1)).numpy().astype(np.uint8)
    return coded(unsigned, bits, [half], (codes * half).reshape(weight.shape))
