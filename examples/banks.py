"""Banks of matrices used through F.linear, in a loop, with a tied embedding: a contest-style script and its submission.

    python examples/banks.py                                       # trains, packs, scores what it packed
    pgolf export model.pgolf --script examples/banks.py -o submission
    cd submission && python banks.py                               # finds model.pgolf beside it: only scores it

What pgolf needs ends in "# pgolf".
"""

import math
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import pgolf  # pgolf

WIDTH, LAYERS, LOOPS, CONTEXT, ROWS, STEPS = 64, 2, 2, 64, 16, 120
ARTIFACT = Path(__file__).with_name("model.pgolf")


class Model(nn.Module):
    """Two layers, each used twice: mixing over the past by decaying means, then an MLP."""

    def __init__(self):
        super().__init__()
        self.tok_emb = nn.Embedding(256, WIDTH)
        self.mix_bank = nn.Parameter(torch.randn(2 * LAYERS, WIDTH, WIDTH) / WIDTH**0.5)
        self.up_bank = nn.Parameter(torch.randn(LAYERS, 4 * WIDTH, WIDTH) / WIDTH**0.5)
        self.down_bank = nn.Parameter(torch.randn(LAYERS, WIDTH, 4 * WIDTH) * 0.02)
        self.decay = nn.Parameter(torch.linspace(-2, 2, WIDTH).repeat(LAYERS, 1))

    def mixed(self, x, layer):
        """Σ_s decay^(t−s) x_s over the past, a decay for each channel."""
        age = torch.arange(x.shape[1])
        age = (age[:, None] - age[None, :])[..., None]
        weight = torch.where(age >= 0, self.decay[layer].sigmoid() ** age.clamp(min=0), 0.0)
        return torch.einsum("tsc,bsc->btc", weight, F.linear(x, self.mix_bank[2 * layer].to(x.dtype)))

    def forward(self, ids):
        x = self.tok_emb(ids)
        for layer in list(range(LAYERS)) * LOOPS:
            x = x + F.linear(self.mixed(F.rms_norm(x, (WIDTH,)), layer), self.mix_bank[2 * layer + 1].to(x.dtype))
            hidden = F.linear(F.rms_norm(x, (WIDTH,)), self.up_bank[layer].to(x.dtype)).relu().square()
            x = x + F.linear(hidden, self.down_bank[layer].to(x.dtype))
        return F.linear(F.rms_norm(x, (WIDTH,)), self.tok_emb.weight)


def read(first, last):
    """Bytes of some of the library's files, as int64."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[first:last]
    return torch.frombuffer(bytearray(b"".join(p.read_bytes() for p in paths)), dtype=torch.uint8).long()


def trained():
    text, model = read(0, 100), Model()
    batches = [
        torch.stack([text[s : s + CONTEXT + 1] for s in torch.randint(len(text) - CONTEXT - 1, (ROWS,)).tolist()])
        for _ in range(STEPS)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in batches:
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, batches


def bits_per_byte(model):
    windows = read(100, 110)[: 64 * (CONTEXT + 1)].view(64, CONTEXT + 1)
    with torch.no_grad():
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    return loss.item() / math.log(2)


torch.manual_seed(0)
if not ARTIFACT.exists():
    model, batches = trained()
    torch.save(model.state_dict(), ARTIFACT.with_name("ckpt.pt"))
    print(f"trained to {bits_per_byte(model):.4f} bits per byte")
    curvature = pgolf.calibrate(model, [batch[:, :-1] for batch in batches[:16]])  # pgolf
    report = pgolf.pack(model, ARTIFACT, budget="60kB", curvature=curvature, code=[__file__])  # pgolf
model = Model()
model.load_state_dict(pgolf.load(ARTIFACT))  # pgolf
print(f"bpb {bits_per_byte(model):.8f} from {ARTIFACT.stat().st_size:,} B")
