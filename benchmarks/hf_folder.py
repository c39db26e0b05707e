"""A small Llama or GPT-2 of transformers, trained on the shared text for some minutes: a folder for rivals.py to read.

    python benchmarks/hf_folder.py llama|gpt2 DIR [--steps 400]

Four layers of width 128, a vocabulary of 1,024 (that of the shards: the folder has no tokenizer), windows of 256 tokens.
The Llama has two heads of keys for four of queries, and a head of its own; the GPT-2 has one table for both ends. Matrices are
trained by torch's Muon, all else by AdamW; rates fall to a tenth. One thread; about 0.3 s a step of 2,048 tokens.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from benchmarks.common import GOLF3M
from pgolf.data.shards import WindowSampler, read_shard

VOCABULARY, WIDTH, LAYERS, HEADS, LENGTH, BATCH = 1024, 128, 4, 4, 256, 8
ENDS = {"bos_token_id": 1, "eos_token_id": 2}  # as the shards' tokenizer has them
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "LlamaConfig",
        {"hidden_size": WIDTH, "intermediate_size": 384, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
         "num_key_value_heads": 2, "max_position_embeddings": LENGTH, "tie_word_embeddings": False},
    ),
    "gpt2": ("GPT2Config", {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": LENGTH}),
}  # fmt: skip
MUON_RATE, ADAM_RATE, WARMUP = 0.02, 3e-3, 20


def untrained(kind: str) -> nn.Module:
    """With weights of seed 0."""
    import transformers  # optional

    name, fields = CONFIGURATIONS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, name)(vocab_size=VOCABULARY, **fields, **ENDS)
    return transformers.AutoModelForCausalLM.from_config(config)


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for what lies between the table and the head."""
    named = dict(model.named_parameters())
    inner = {name for name, p in named.items() if p.dim() == 2 and VOCABULARY not in p.shape and LENGTH not in p.shape}
    return [
        torch.optim.Muon([named[name] for name in inner], lr=MUON_RATE, weight_decay=0.0),
        torch.optim.AdamW([p for name, p in named.items() if name not in inner], lr=ADAM_RATE, weight_decay=0.0),
    ]


def train(model: nn.Module, steps: int) -> None:
    sampler = WindowSampler([read_shard(GOLF3M / "text_train_000000.bin")], LENGTH, BATCH, 0)
    parts = optimizers(model.train())
    rates = [part.param_groups[0]["lr"] for part in parts]
    for step in range(steps):
        ids = sampler.batch(step)
        loss = nn.functional.cross_entropy(model(input_ids=ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        for part, rate in zip(parts, rates, strict=True):
            part.param_groups[0]["lr"] = rate * min(1, (step + 1) / WARMUP) * (1 - 0.9 * step / steps)
            part.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}/{steps}: {float(loss.detach()):.4f}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=CONFIGURATIONS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    model = untrained(args.kind)
    train(model, args.steps)
    model.eval().save_pretrained(args.folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
