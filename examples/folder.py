"""A Hugging Face-style module: a configuration, `forward(input_ids, labels)` with an output object, a saved folder.

    python examples/folder.py
    pgolf unpack model.pgolf -o small --like model      # a folder again, its tokenizer and configuration beside it

Nothing here needs transformers. What pgolf needs ends in "# pgolf".
"""

import json
import math
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import pgolf  # pgolf


@dataclass
class Config:
    model_type: str = "tiny_gru"
    vocab_size: int = 256
    hidden_size: int = 96
    intermediate_size: int = 256
    num_hidden_layers: int = 2
    tie_word_embeddings: bool = True


@dataclass
class CausalLMOutput:
    loss: Tensor | None
    logits: Tensor


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Short causal convolution over the past instead of attention, then a gated MLP."""

    def __init__(self, config):
        super().__init__()
        self.conv = nn.Conv1d(config.hidden_size, config.hidden_size, 6)
        self.norm, self.mlp = nn.LayerNorm(config.hidden_size), MLP(config)

    def forward(self, x):
        x = x + self.conv(F.pad(x.mT, (5, 0))).mT
        return x + self.mlp(self.norm(x))


class TinyForCausalLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids, labels=None):
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        logits = self.lm_head(self.norm(x))
        loss = None if labels is None else F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss, logits)

    def save_pretrained(self, folder):
        Path(folder).mkdir(exist_ok=True)
        Path(folder, "config.json").write_text(json.dumps(asdict(self.config)))
        state = {name: t for name, t in self.state_dict().items() if name != "lm_head.weight"}
        save_file(state, Path(folder, "model.safetensors"), {"format": "pt"})


paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
text = torch.frombuffer(bytearray(b"".join(p.read_bytes() for p in paths[:110])), dtype=torch.uint8).long()
torch.manual_seed(0)
rows = torch.stack([text[s : s + 64] for s in torch.randint(len(text) - 64, (1920,)).tolist()])
model = TinyForCausalLM(Config())
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for batch in rows[64:].split(16):
    loss = model(batch, labels=batch).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.save_pretrained("model")


def held_out():
    with torch.no_grad():
        return model(rows[:64], labels=rows[:64]).loss.item() / math.log(2)


print(f"before {held_out():.4f} bits per byte")
curvature = pgolf.calibrate(model, list(rows[64:320].split(16)))  # pgolf
report = pgolf.pack("model", "model.pgolf", budget="100kB", curvature=curvature)  # pgolf
model.load_state_dict(pgolf.load("model.pgolf"), strict=False)  # pgolf (the tied head comes with the embedding)
print(f"after  {held_out():.4f} bits per byte, {report.artifact_bytes:,} B")
