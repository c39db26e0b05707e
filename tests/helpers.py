"""What several test files share."""

import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"  # a real checkpoint; absent from a bare clone

TOY_MODEL = '''
import torch
from torch import nn

class Toy(nn.Module):
    """A tied-embedding language model of 64 pieces, small enough for tests."""
    def __init__(self, width=48):
        super().__init__()
        self.tok_emb = nn.Embedding(64, width)
        self.up = nn.Linear(width, 96, bias=False)
        self.down = nn.Linear(96, width, bias=False)
        self.gain = nn.Parameter(torch.ones(width))

    def forward_logits(self, ids):
        x = self.tok_emb(ids)
        x = x + self.gain * self.down(torch.relu(self.up(x)))
        return x @ self.tok_emb.weight.T

def broken():
    raise RuntimeError("no such thing")

not_a_module = 3
'''


def generator(seed: int = 0) -> torch.Generator:
    """An own generator: tests leave the global one alone."""
    return torch.Generator().manual_seed(seed)


def toy_state(seed: int = 0, width: int = 48) -> dict[str, Tensor]:
    """A state dict that fits TOY_MODEL."""
    g = generator(seed)
    return {
        "tok_emb.weight": torch.randn(64, width, generator=g),
        "up.weight": torch.randn(96, width, generator=g) * 0.1,
        "down.weight": torch.randn(width, 96, generator=g) * 0.1,
        "gain": torch.rand(width, generator=g),
    }


def toy_module(state: dict[str, Tensor]) -> nn.Module:
    """TOY_MODEL's class, holding `state`."""
    names: dict[str, object] = {}
    exec(compile(TOY_MODEL, "toy.py", "exec"), names)
    module = names["Toy"]()  # type: ignore[operator]
    module.load_state_dict(state)
    return module


class Counting(nn.Module):
    """A language model of `vocab` pieces whose logits depend on the whole context: a running sum of embeddings."""

    def __init__(self, vocab: int = 13) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(vocab, vocab, generator=generator()))

    def forward(self, ids: Tensor) -> Tensor:
        position = torch.arange(1, ids.size(1) + 1, device=ids.device)[:, None]
        return self.table[ids].cumsum(1) / position.sqrt()


def losses_that_note_devices(seen: list[str]) -> Callable[[Tensor, int], Tensor]:
    """`losses` for `bpb.score_windows`: zeros on the CPU, for nothing can be computed on `meta`, which stands for a GPU."""

    def losses(ids: Tensor, skip: int) -> Tensor:
        seen.append(ids.device.type)
        return torch.zeros(ids.size(0), ids.size(1) - 1 - skip)

    return losses


def sweep_inputs(folder: Path) -> None:
    """What `pgolf sweep` needs, in `folder`: ckpt.pt, toy.py, val.bin and bytes.bin; a log; logits of a trained model's size."""
    from pgolf.data.shards import write_shard

    state = toy_state()
    state["tok_emb.weight"] *= 0.2
    torch.save(state, folder / "ckpt.pt")
    (folder / "toy.py").write_text(TOY_MODEL)
    write_shard(folder / "val.bin", np.random.default_rng(0).integers(0, 64, 3000).astype(np.uint16))
    write_shard(folder / "bytes.bin", np.full(3000, 3, np.uint16))
    steps = range(1, 900, 9)
    (folder / "run.log").write_text("".join(f"step:{s}/3000 train_loss:{9 - s / 999:.3f} val_bpb:2.5\n" for s in steps))


def free_port() -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def without_times(value: object) -> object:
    """JSON without seconds: what two runs must agree on."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not k.endswith("seconds")}
    return [without_times(v) for v in value] if isinstance(value, list) else value
