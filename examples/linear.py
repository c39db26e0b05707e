"""A byte-level transformer of nn.Linear layers, trained for seconds on Python's own library, then packed.

python examples/linear.py        # writes ckpt.pt and model.pgolf here; what pgolf needs ends in "# pgolf"
"""

import math
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import pgolf  # pgolf

WIDTH, LAYERS, HEADS, CONTEXT, ROWS, STEPS = 64, 2, 4, 64, 16, 120


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)

    def forward(self, ids):
        x = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))


def read(first, last):
    """Bytes of some of the library's files, as int64."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[first:last]
    return torch.frombuffer(bytearray(b"".join(p.read_bytes() for p in paths)), dtype=torch.uint8).long()


def bits_per_byte(model, text):
    windows = text[: 64 * (CONTEXT + 1)].view(64, CONTEXT + 1)
    with torch.no_grad():
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    return loss.item() / math.log(2)


torch.manual_seed(0)
train, held_out = read(0, 100), read(100, 110)
batches = [
    torch.stack([train[s : s + CONTEXT + 1] for s in torch.randint(len(train) - CONTEXT - 1, (ROWS,)).tolist()])
    for _ in range(STEPS)
]
model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for batch in batches:
    loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
torch.save(model.state_dict(), "ckpt.pt")
print(f"before {bits_per_byte(model, held_out):.4f} bits per byte, {Path('ckpt.pt').stat().st_size:,} B")

print(f"foreseen {pgolf.estimate(model, budget='60kB').bits_per_weight:.2f} bits a weight")  # pgolf
curvature = pgolf.calibrate(model, [batch[:, :-1] for batch in batches[:16]])  # pgolf
report = pgolf.pack(model, "model.pgolf", budget="60kB", curvature=curvature)  # pgolf
model.load_state_dict(pgolf.load("model.pgolf"))  # pgolf
print(f"after  {bits_per_byte(model, held_out):.4f} bits per byte, {report.artifact_bytes:,} B")
