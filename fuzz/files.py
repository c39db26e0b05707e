"""Files that people hand over: checkpoints, curvature, shards, tokenizers, results, what runs and sweeps left behind.

What will surprise you: the reader is called as its command calls it, and what it returned is used as far as the command
would use it, since a lie that is believed does its harm later.
"""

from __future__ import annotations

import io
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.target import file

# ---- tokens


TOKENS = np.arange(600, dtype=np.uint16) % 64


def shards() -> list[bytes]:
    """A contest shard; a sidecar too, of the text in which token n stands for n bytes."""
    from pgolf.data.shards import write_shard

    path = file("seed.bin")
    write_shard(path, TOKENS)
    return [path.read_bytes()]


def read_shard(path: Path) -> Any:
    """The sum of a shard's tokens."""
    from pgolf.data.shards import read_shard

    return int(read_shard(path).sum())


def read_sidecar(path: Path) -> Any:
    """Bits per byte of a text whose bytes the sidecar counts."""
    from pgolf.data import sidecar
    from pgolf.scoring import bpb

    return bpb.result_of(np.ones(len(TOKENS) - 1), sidecar.read(path, TOKENS), 1.0).bpb


@cache
def tokenizers() -> list[bytes]:
    """A SentencePiece model of 300 pieces."""
    from pgolf.data.corpus import train_tokenizer

    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, rng.integers(1, 8)))) for _ in range(200)]
    path = file("seed.model")
    train_tokenizer([" ".join(rng.choice(words, 4000))], path, 300)
    return [path.read_bytes()]


def read_tokenizer(path: Path) -> Any:
    """Bytes of a text by a tokenizer's pieces."""
    from pgolf.data.tokenizers import stream_bytes, token_bytes

    lut = token_bytes(path)
    tokens = np.arange(300, dtype=np.uint16)
    return [stream_bytes(tokens, lut, convention=rule).tobytes() for rule in ("exact", "contest")]


# ---- checkpoints


def _state() -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 6, generator=generator)
    return {"model": {"a": weight, "b": weight, "c": weight.bfloat16()}, "config": {"layers": 2}, "step": 3}


def _pickled(modern: bool) -> list[bytes]:
    import torch

    data = io.BytesIO()
    torch.save(_state(), data, _use_new_zipfile_serialization=modern)
    return [data.getvalue()]


def checkpoints() -> list[bytes]:
    """What torch.save writes."""
    return _pickled(modern=True)


def old_checkpoints() -> list[bytes]:
    """What torch.save wrote before version 1.6."""
    return _pickled(modern=False)


def safetensors() -> list[bytes]:
    """Two tensors."""
    from safetensors.torch import save

    state = _state()["model"]
    return [save({"a": state["a"], "c": state["c"]}, {"format": "pt"})]


def read_checkpoint(path: Path) -> Any:
    """Names, dtypes and bits of a checkpoint."""
    from pgolf.models import checkpoint

    tensors = checkpoint.read(path).state_dict()
    return [(name, str(t.dtype), list(t.shape), checkpoint.to_bytes(t)) for name, t in sorted(tensors.items())]


def configs() -> list[bytes]:
    """A Hugging Face configuration, and the one that our own trainer writes."""
    return [b'{"model_type": "gpt2", "n_layer": 2, "tie": true}', json.dumps(_gpt()[0]).encode()]


@cache
def _gpt() -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and state dict of a small model of ours."""
    from pgolf.train.loop.recipes import RECIPES, override
    from pgolf.train.model.gpt import GPT

    words = "vocab_size=64,dim=32,heads=2,kv_heads=1,rope_dims=8,seq_len=16,batch_size=4,steps=12"
    recipe = override(RECIPES["tiny"], words.split(","))
    return recipe.to_config(seed=0, tokenizer=""), GPT(recipe.model).state_dict()


def read_config(path: Path) -> Any:
    """A Hugging Face folder with this config.json, and the model that it may speak of."""
    import torch

    from pgolf.models import checkpoint
    from pgolf.train.model import rebuild

    if not (path.parent / "model.safetensors").exists():
        from safetensors.torch import save_file

        save_file(_gpt()[1], path.parent / "model.safetensors")
    found = checkpoint.read(path.parent)
    if rebuild.is_ours(found.config):
        model = rebuild.from_config(found.config or {}, found.state_dict())
        model.forward_logits(torch.zeros(1, 4, dtype=torch.int64))
    return sorted(found.config or {})


def indices() -> list[bytes]:
    """The index of a Hugging Face folder in shards."""
    return [b'{"metadata": {"total_size": 288}, "weight_map": {"a": "one.safetensors", "c": "one.safetensors"}}']


def read_index(path: Path) -> Any:
    """A Hugging Face folder with this index beside one shard."""
    (path.parent / "one.safetensors").write_bytes(safetensors()[0])
    return read_checkpoint(path.parent)


# ---- curvature


def curvatures() -> list[bytes]:
    """Of an embedding and a head."""
    import torch

    from pgolf.quant.curvature.collect import calibrate

    torch_generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(16, 8), torch.nn.Linear(8, 16))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, generator=torch_generator)
    path = file("seed.curvature")
    calibrate(model, [torch.arange(16).reshape(2, 8)], progress=False).save(path)
    return [path.read_bytes()]


def read_curvature(path: Path) -> Any:
    """What a pack asks of a curvature file."""
    import torch

    from pgolf.fitting import inputs
    from pgolf.models import checkpoint
    from pgolf.quant.curvature.store import Curvature

    found = Curvature.load(path)
    source = checkpoint.from_mapping({"0.weight": torch.ones(16, 8), "1.weight": torch.ones(16, 8)})
    known = inputs.known_curvatures(source, found)
    return [sorted(known), found.transposed]


# ---- results and runs


@cache
def results() -> list[bytes]:
    """What `pgolf eval -o` writes of one model."""
    from pgolf.scoring.bpb import result_of
    from pgolf.scoring.documents import per_document
    from pgolf.scoring.results import Result

    nats, counts = np.random.default_rng(0).uniform(1, 5, 299), np.full(300, 3, np.uint16)
    documents = per_document(nats, counts, np.arange(0, 299, 50))
    made = Result("ckpt.pt", "windows of 1,024", result_of(nats, counts, 2.0), documents)
    return [json.dumps(made.to_json()).encode()]


def read_result(path: Path) -> Any:
    """The score in a result, and how it compares with the honest one."""
    from pgolf.scoring import paired
    from pgolf.scoring import results as saved

    honest = file("honest.json")
    if not honest.exists():
        honest.write_bytes(results()[0])
    found = saved.read(path)
    change = paired.difference(saved.read(honest).documents, found.documents)
    return json.dumps([found.summary(), change.to_json()])


def logs() -> list[bytes]:
    """The log of three training steps."""
    row = {"step": 1, "progress": 0.1, "loss": 4.1, "grad_norm": 1.0, "lr_scale": 1.0, "seconds": 0.1, "tokens": 64}
    return [b"".join(json.dumps(row | {"step": step}).encode() + b"\n" for step in (1, 2, 3))]


def read_log(path: Path) -> Any:
    """What a resumed run makes of its log."""
    from pgolf.train.loop.metrics import MetricsLog, columns, read_metrics

    MetricsLog(path, keep=2).close()
    rows = read_metrics(path)
    return [len(rows), [column.tolist() for column in columns(rows, "tokens", "loss")]]


@cache
def _trainer() -> Any:
    from pgolf.data.shards import WindowSampler
    from pgolf.train.loop.recipes import RECIPES, override
    from pgolf.train.loop.trainer import Trainer
    from pgolf.train.model.gpt import GPT

    words = "vocab_size=64,dim=32,heads=2,kv_heads=1,rope_dims=8,layers=1,seq_len=16,batch_size=4,steps=12"
    recipe = override(RECIPES["tiny"], words.split(","))
    sampler = WindowSampler([np.arange(300, dtype=np.uint16) % 64], recipe.seq_len, recipe.batch_size, 0)
    return Trainer(GPT(recipe.model), sampler, recipe.train)


@cache
def states() -> list[bytes]:
    """What a training run saves to be resumed."""
    from pgolf.train.loop.save import save_state

    path = file("seed-state.pt")
    trainer = _trainer()
    trainer.step()
    save_state(path, trainer.state_dict(), {"seed": 0})
    return [path.read_bytes()]


def read_state(path: Path) -> Any:
    """The step at which a run goes on."""
    from pgolf.train.loop.save import resume

    resume(_trainer(), path, {"seed": 0})
    return _trainer().step_count


# ---- sweeps

_SHARED = {"checkpoint": "c" * 64, "calibration": {"tokens": 512}, "rules": [], "versions": {"torch": "2.13"}}
_SCORE = {"bpb": 1.7, "loss": 3.1, "tokens": 2999, "text_bytes": 8997, "score_seconds": 0.1}


def _plan() -> list[Any]:
    from pgolf.sweep.points import points_of

    return points_of("sdclip:int5,rtn:int8", [5000])


def sweeps() -> list[bytes]:
    """What a sweep's folder says of its points."""
    from dataclasses import asdict

    return [json.dumps({"shared": _SHARED, "plan": [asdict(p) for p in _plan()]}).encode()]


def read_sweep(path: Path) -> Any:
    """The folder of a sweep that goes on."""
    from pgolf.sweep.folder import open_folder

    return open_folder(path.parent, _SHARED, _plan(), force=False).plan


def points() -> list[bytes]:
    """A measured point, one that could not be had, and the checkpoint itself, in one object."""
    measured = _SCORE | {
        "bytes": 4990, "bits_per_weight": 3.1, "quantized_bits_per_weight": 3.0, "predicted_rise": 0.01, "step": 0.7,
        "notes": ["a note"], "pack_seconds": 0.3, "load_seconds": 0.1,
    }  # fmt: skip
    before = _SCORE | {"weights": 12_000, "checkpoint_bytes": 48_000}
    return [json.dumps({"before": before, "points": [measured, {"refused": "too small"}]}).encode()]


def read_points(path: Path) -> Any:
    """Tables, picture and page of a sweep whose points say this."""
    from pgolf.report import terminal
    from pgolf.report.page import frontier_page
    from pgolf.sweep import run
    from pgolf.sweep.folder import BEFORE, Folder

    folder = Folder(path.parent, tuple(_plan()))
    shutil.rmtree(folder.path / "points", ignore_errors=True)
    (folder.path / "points").mkdir()
    try:
        given = json.loads(path.read_bytes())
        parts = {BEFORE: given["before"]} | {p.key: row for p, row in zip(_plan(), given["points"], strict=False)}
    except (ValueError, LookupError, TypeError, RecursionError, AttributeError):
        parts = {BEFORE: None}  # what is no JSON is a point's file as it is
    for key, value in parts.items():
        (folder.path / "points" / f"{key}.json").write_bytes(path.read_bytes() if value is None else _dumped(value))
    done = folder.done()
    if done.keys() != {BEFORE, *(p.key for p in _plan())}:
        return None  # a sweep measures again what is not there
    made = run.results(folder, done, _SHARED, _plan()[0].series)
    return [terminal.point_cells(made), terminal.comparison_cells(made), len(frontier_page(made, "a sweep"))]


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()
