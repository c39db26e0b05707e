"""Submission folders, made up for the tests."""

import json
from pathlib import Path

SCRIPT = '''
"""Muon, XSA and GPTQ are only spoken of here."""
import os, zlib
import torch
import torch.nn.functional as F

class Hyperparameters:
    vocab_size = int(os.environ.get("VOCAB_SIZE", 1024))
    ttt_enabled = bool(int(os.environ.get("TTT_ENABLED", "0")))
    xsa_last_n = int(os.environ.get("XSA_LAST_N", "4"))
    data_path = os.environ.get("DATA_PATH", "./data/datasets/fineweb10B_sp1024")

class Muon(torch.optim.Optimizer):  # not SOAP
    def step(self):
        return zeropower_via_newtonschulz5(self.grad)

def mlp(x, up, down):
    """SwiGLU would be x * F.silu(x)."""
    h = torch.relu(up(x))
    return down(h.square())

def attention(q, k, args):
    return use_xsa(q, k) if args.xsa_last_n else q

def eval_val_ttt(model, ttt_lr):
    loss_sum = F.cross_entropy(model(0), model(1))
    print(f"val_bpb:{loss_sum:.4f}")

def save(state):
    note = "lzma would be smaller than brotli here"
    return zlib.compress(state, 9)
'''


def log(bpb: float, seed: int = 1337, size: int = 15_000_000) -> str:
    """What a contest trainer prints, ending in a packed score."""
    steps = "".join(
        f"step:{s}/1000 train_loss:{9 - s / 250:.4f} train_time:{50 * s}ms\n" for s in range(100, 1001, 100)
    )
    return (
        f"seed:{seed}\n{steps}step:1000/1000 val_loss:2.1 val_bpb:{bpb - 0.01:.4f} train_time:50000ms\n"
        f"Total submission size int8+zlib: {size} bytes\n"
        f"final_int8_zlib_roundtrip_exact val_loss:2.12 val_bpb:{bpb:.8f}\n"
    )


def submission(
    place: Path, *, bpb: float = 1.25, script: str = SCRIPT, seeds: tuple[int, ...] = (1, 2), **facts: object
) -> Path:
    """A folder with a script, a description, a README and a log a seed, all of which agree."""
    place.mkdir(parents=True)
    (place / "train_gpt.py").write_text(script)
    (place / "submission.json").write_text(json.dumps({"val_bpb": bpb, "bytes_total": 15_000_000} | facts))
    (place / "README.md").write_text(f"# One more\n\nval_bpb: {bpb:.4f}\n")
    for number, seed in enumerate(seeds):
        (place / f"train_seed{seed}.log").write_text(log(bpb + (number - (len(seeds) - 1) / 2) * 1e-3, seed))
    return place
