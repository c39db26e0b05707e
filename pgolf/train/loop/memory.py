"""Whether a run will fit into memory, said before it starts rather than when it dies."""

from __future__ import annotations

from pathlib import Path

import torch

from pgolf.errors import UsageError
from pgolf.train.loop.recipes import Recipe
from pgolf.train.model.gpt import GPT, GPTConfig


def check_memory(recipe: Recipe, ranks: int, device: torch.device) -> None:
    """UsageError if training will not fit into the memory that is free now."""
    windows = max(1, recipe.batch_size // (recipe.train.accumulate * ranks))
    needed = memory_needed(recipe.model, windows * recipe.seq_len, 2 if device.type == "cuda" else 4)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
    if needed > free:
        raise UsageError(
            f"training needs about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: "
            f"raise accumulate (now {recipe.train.accumulate}), lower batch_size or seq_len"
        )


def memory_needed(config: GPTConfig, tokens: int, item: int) -> int:
    """Bytes, roughly: weights, gradients, average and two moments in float32; activations of `item` bytes of `tokens`.

    Kept for the backward pass, a layer run and a token: about 14 vectors of the model's width and 3 of the MLP's; the logits
    are held about three times in float32.
    """
    with torch.device("meta"):
        weights = sum(param.numel() for param in GPT(config).parameters())
    layer = config.dim * (14 + 3 * config.mlp_mult) * item
    return 4 * 5 * weights + tokens * ((config.layers + config.loop) * layer + 3 * 4 * config.vocab_size)


def _free_memory() -> int:
    """Bytes that Linux could give to a process now; a huge number where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 1 << 62
    sizes = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return 1024 * int(sizes["MemAvailable"].split()[0])
