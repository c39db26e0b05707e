"""Modelling options on the way through the product: trained, compiled, traced, packed, loaded; and the loop's start."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import pgolf
from pgolf.data.shards import WindowSampler
from pgolf.errors import UsageError
from pgolf.models.logits import logits_of, undisturbed
from pgolf.quant.curvature.collect import calibrate
from pgolf.quant.curvature.selftext import _plan
from pgolf.train.loop.recipes import RECIPES, override
from pgolf.train.loop.trainer import MISCOMPILED, Trainer, TrainSettings
from pgolf.train.model import rebuild
from pgolf.train.model.gpt import GPT, GPTConfig, untrained
from tests.train.toys import ALL, EVERY, NAMES, OPTIONS, awake

TINY = GPTConfig(vocab_size=64, layers=5, dim=64, heads=4, kv_heads=2, mlp_mult=2, rope_dims=8)
BIG = {"bigram_buckets": 256, "bigram_dim": 16}  # a table large enough to be quantized


def config(options: dict) -> GPTConfig:
    return replace(TINY, **(options | BIG if "bigram_buckets" in options else options))


def sampler(seq_len: int = 16) -> WindowSampler:
    """A second-order source: the next token is decided by the two before, with BOS here and there."""
    rng, tokens = np.random.default_rng(0), [3, 5]
    for _ in range(4000):
        known = (tokens[-1] * 7 + tokens[-2] * 3) % 61 + 2
        tokens.append(1 if rng.random() < 0.02 else known if rng.random() < 0.8 else int(rng.integers(2, 64)))
    return WindowSampler([np.array(tokens, np.uint16)], seq_len, 8, seed=0)


def trained(options: dict, steps: int = 4, **keywords) -> tuple[GPT, Trainer]:
    model = GPT(config(options))
    trainer = Trainer(model, sampler(), TrainSettings(steps=steps), **keywords)
    trainer.run()
    return model, trainer


@pytest.mark.parametrize("options", EVERY, ids=NAMES)
def test_every_option_trains_is_traced_whole_packs_and_comes_back(options: dict, tmp_path):
    model, _ = trained(options)
    curvature = calibrate(model, sampler().batch(0)[:, :-1])
    assert set(curvature.coverage.values()) <= {"traced", "not a matrix"}
    report = pgolf.pack(model, tmp_path / "m.pgolf", curvature=curvature, rules=["*=step=0.002"])
    assert all(row.method.startswith("auto") for row in report.rows if row.weights >= 2048)
    loaded = untrained({"gpt": asdict(model.config)}, model.state_dict()).eval()
    loaded.load_state_dict(pgolf.load(tmp_path / "m.pgolf"))
    ids = sampler().batch(1)[:, :-1]
    with torch.no_grad():
        before, after = model.forward_logits(ids), loaded.forward_logits(ids)
    assert (before - after).square().mean() < 1e-3 * before.var()


def test_settings_are_set_as_any_other():
    recipe = override(
        RECIPES["small"], ["xsa=2", "bigram_buckets=1024", "spectral=0.5", "bos_id=none", "loop_start=0.4"]
    )
    assert (recipe.model.xsa, recipe.model.bigram_buckets, recipe.model.spectral) == (2, 1024, 0.5)
    assert (recipe.model.bos_id, recipe.train.loop_start) == (None, 0.4)
    rebuilt = rebuild.from_config(config := recipe.to_config(seed=0, tokenizer=""), GPT(recipe.model).state_dict())
    assert rebuilt.config == recipe.model
    assert config["gpt"]["xsa"] == 2


def test_the_loop_starts_at_its_share_of_the_run():
    """After half of four steps the model has the other form; its untied matrices rest until then."""
    model = GPT(config(OPTIONS["loop"]))
    trainer = Trainer(model, sampler(), TrainSettings(steps=4, loop_start=0.5))
    untied = model.blocks[1].again.mlp.fc.weight
    first, seen = untied.detach().clone(), []
    trainer.run(lambda info: seen.append((model.looped, torch.equal(untied, first))))
    assert [looped for looped, _ in seen] == [False, True, True, True]
    assert [rests for _, rests in seen] == [True, True, False, False]
    with pytest.raises(UsageError, match="is a share of the run"):
        TrainSettings(steps=1, loop_start=1.0)


def test_a_checkpoint_from_before_the_loop_is_one_without_it():
    looped = config(OPTIONS["loop"])
    state = GPT(looped).state_dict()
    assert untrained({"gpt": asdict(looped), "looped": False}, state).looped is False
    assert untrained({"gpt": asdict(looped)}, state).looped is True


def test_text_of_its_own_costs_one_position_a_token():
    """Calibration without data: no option makes the model generate by whole passes."""
    model = awake(ALL)
    run = logits_of(model)
    with undisturbed(model, gradients=False):
        run.prepare(torch.zeros(1, 21, dtype=torch.int64))  # how it is called is learned first
        assert _plan(run, 50, 21, torch.device("cpu")) is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports parts of torch that it deprecates
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_all_options_train_compiled():
    """Both forms are compiled before the clock starts; the weights end where those of a run without compiling do."""
    shallow = ALL | {"layers": 3, "loop": 1, "lanes": 1, "xsa": 1}  # compiling takes its time a layer
    plain, _ = trained(shallow)
    model, trainer = trained(shallow, compile=True)
    assert trainer.notes == ([MISCOMPILED] if torch.__version__.startswith("2.6.") else [])
    for name, weight in plain.named_parameters():
        assert torch.allclose(model.get_parameter(name), weight, atol=0.02), name
