"""Optimizers, loop and demo: updates of the right size, the same run twice, and a model that learns."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pgolf.data.corpus import BOS
from pgolf.data.shards import read_shard
from pgolf.data.tokenizers import stream_bytes, token_bytes
from pgolf.errors import DataError, PgolfError, UsageError
from pgolf.scoring.bpb import evaluate
from pgolf.train.loop import demo_model
from pgolf.train.loop.demo_model import TINY_DEMO, prepare_demo, train_demo
from pgolf.train.loop.optim import Muon, OptimSettings, WeightAverage, build_optimizers, lr_scale, orthogonalize
from pgolf.train.loop.trainer import MISCOMPILED, StepInfo, Trainer, TrainSettings
from pgolf.train.model.gpt import GPT, GPTConfig, untrained
from tests.helpers import generator
from tests.train.toys import CYCLE, cycle_sampler, same


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8)])
def test_orthogonalize_keeps_the_singular_vectors(shape: tuple[int, int, int]):
    """Newton-Schulz at these coefficients brings singular values to 0.6..1.3 and leaves U and V alone."""
    G = randn(*shape)
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    inner = U.mT @ orthogonalize(G) @ Vh.mT
    diagonal = inner.diagonal(dim1=-2, dim2=-1)
    assert diagonal.min() > 0.5
    assert diagonal.max() < 1.4
    assert (inner - torch.diag_embed(diagonal)).abs().max() < 1e-3


def test_muon_treats_a_bank_as_its_matrices():
    weights, gradients = randn(3, 6, 4), [randn(3, 6, 4, seed=s) for s in (1, 2)]
    bank = nn.Parameter(weights.clone())
    separate = [nn.Parameter(matrix.clone()) for matrix in weights]
    optimizers = [Muon(params, lr=0.1, weight_decay=0.5) for params in ([bank], separate)]
    for gradient in gradients:
        bank.grad = gradient
        for param, matrix in zip(separate, gradient, strict=True):
            param.grad = matrix
        for optimizer in optimizers:
            optimizer.step()
    assert torch.allclose(bank, torch.stack(list(separate)), atol=1e-6)
    assert not torch.allclose(bank, weights, atol=1e-2)


def test_every_parameter_has_one_optimizer():
    model = GPT(TINY_DEMO.model)
    muon, adamw = build_optimizers(model, OptimSettings())
    owned = [id(p) for optimizer in (muon, adamw) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    matrices = [p for group in muon.param_groups for p in group["params"]]
    assert all(p.ndim == 2 for p in matrices)
    assert not any(p is model.tok_emb.weight for p in matrices)


def test_learning_rate_schedule():
    def scale(progress: float) -> float:
        return lr_scale(progress, warmup=0.1, warmdown=0.5)

    assert [scale(p) for p in (0.05, 0.1, 0.5, 0.75, 1.0)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])
    assert lr_scale(0.3, warmup=0.0, warmdown=0.0) == 1.0


def test_weight_average_forgets_its_start_and_tracks():
    layer = nn.Linear(1, 1, bias=False, device="meta").to_empty(device="cpu")
    layer.weight.data.fill_(1000.0)
    average = WeightAverage(layer, decay=0.9)
    for _ in range(300):
        layer.weight.data.fill_(2.0)
        average.update()
    layer.weight.data.fill_(5.0)
    average.update()
    average.copy_to_model()
    assert layer.weight.item() == pytest.approx(0.9 * 2.0 + 0.1 * 5.0, abs=1e-4)


CONFIG = GPTConfig(vocab_size=16, layers=2, dim=32, heads=2, kv_heads=1, mlp_mult=2, rope_dims=8)


def run(seed: int = 0, steps: int = 100, **options) -> tuple[GPT, list[StepInfo]]:
    seen: list[StepInfo] = []
    model = GPT(CONFIG, seed=seed)
    Trainer(model, cycle_sampler(seed), TrainSettings(steps=steps, **options)).run(seen.append)
    return model, seen


def test_training_learns_a_cycle():
    model, seen = run()
    assert seen[0].loss == pytest.approx(math.log(16), abs=0.3)
    result = evaluate(model.forward_logits, CYCLE, np.ones(len(CYCLE)), seq_len=16)
    assert result.loss < 0.2
    assert [info.step for info in seen] == list(range(1, 101))
    assert seen[-1].tokens == 100 * 4 * 16


def test_same_seed_same_weights_and_global_state_untouched():
    state = torch.random.get_rng_state()
    (a, _), (b, _), (c, _) = run(steps=5), run(steps=5), run(seed=1, steps=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(a, b)
    assert not torch.equal(a.tok_emb.weight, c.tok_emb.weight)


def test_a_loss_that_is_not_finite_stops_and_names_the_step():
    model = GPT(CONFIG)
    trainer = Trainer(model, cycle_sampler(), TrainSettings(steps=10))
    trainer.step()
    model.blocks[0].attn_scale.data[0] = math.nan
    with pytest.raises(PgolfError, match="the loss is nan at step 2"):
        trainer.run()


def test_a_batch_in_two_passes_is_the_batch():
    """Tolerance: float32 sums in another order."""
    one, whole = run(steps=3, accumulate=1)
    two, halves = run(steps=3, accumulate=2)
    assert [info.loss for info in halves] == pytest.approx([info.loss for info in whole], rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    with pytest.raises(UsageError, match="does not divide"):
        run(accumulate=3)


@pytest.mark.parametrize(
    ("version", "note"),
    [
        ("2.13.0", "torch.compile fails here, training without (RuntimeError: no compiler)"),
        ("2.6.0+cu124", MISCOMPILED),
    ],
)
def test_without_a_compiler_the_run_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch, version: str, note: str):
    def compiled(model: nn.Module, **options: bool):
        def fail(*args: torch.Tensor):
            raise RuntimeError("no compiler\nanywhere")

        return fail

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch, "__version__", version)
    models = [GPT(CONFIG), GPT(CONFIG)]
    for model, compile in zip(models, (False, True), strict=True):
        trainer = Trainer(model, cycle_sampler(), TrainSettings(steps=3), compile=compile)
        trainer.run()
    assert trainer.notes == [note]
    assert same(*models)


def test_state_of_a_trainer_continues_it():
    def fresh() -> Trainer:
        return Trainer(GPT(CONFIG), cycle_sampler(), TrainSettings(steps=6))

    whole, first, second = fresh(), fresh(), fresh()
    whole.run()
    for _ in range(3):
        first.step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.run()
    assert same(whole.model, second.model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_cuda_compiled_in_bfloat16_learns_as_on_the_cpu():
    """Tolerance: bfloat16 activations and orthogonalisation; the task is learnt either way."""
    model = GPT(CONFIG, compute_dtype=torch.bfloat16).cuda()
    trainer = Trainer(model, cycle_sampler(), TrainSettings(steps=100), compile=True)
    trainer.run()
    assert trainer.notes == []
    assert evaluate(model.forward_logits, CYCLE, np.ones(len(CYCLE)), seq_len=16).loss < 0.3


@pytest.fixture(scope="module")
def demo_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo")
    prepare_demo(directory, TINY_DEMO)
    return directory


def test_demo_data_is_the_text_of_the_files(demo_directory: Path):
    _, held_out = demo_model.split_documents(TINY_DEMO.max_files)
    tokens = read_shard(demo_directory / "val.bin")
    assert (tokens == BOS).sum() == len(held_out)
    counts = stream_bytes(tokens, token_bytes(demo_directory / "tokenizer.model"))
    assert counts.sum() == sum(len(text.encode()) for _, text in held_out)


def test_demo_split_is_by_file_and_repeatable():
    train, held_out = demo_model.split_documents()
    assert not {name for name, _ in train} & {name for name, _ in held_out}
    assert (train, held_out) == demo_model.split_documents()
    assert 0.02 < sum(len(text) for _, text in held_out) / sum(len(text) for _, text in train) < 0.1


def test_demo_data_is_deterministic(demo_directory: Path, tmp_path: Path):
    prepare_demo(tmp_path, TINY_DEMO)
    for name in ("train.bin", "val.bin", "tokenizer.model"):
        assert (tmp_path / name).read_bytes() == (demo_directory / name).read_bytes()


def test_demo_checkpoint_is_plain_repeatable_and_learns(demo_directory: Path):
    losses: list[float] = []
    path = train_demo(demo_directory, seed=7, settings=TINY_DEMO, progress=lambda info: losses.append(info.loss))
    first = torch.load(path, weights_only=True)
    second = torch.load(train_demo(demo_directory, seed=7, settings=TINY_DEMO), weights_only=True)
    assert same(first["model"], second["model"])
    assert json.loads(json.dumps(first["config"])) == {**first["config"]}
    assert sum(losses[-5:]) / 5 < losses[0] - 1
    model = untrained(first["config"], first["model"])
    model.load_state_dict(first["model"])


def test_demo_without_a_standard_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(demo_model.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="the demo needs a standard library"):
        prepare_demo(tmp_path / "out", TINY_DEMO)
