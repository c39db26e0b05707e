"""The model core: causal, seeded without touching global state, and of the sizes its presets promise."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from pgolf.errors import UsageError
from pgolf.train.model.gpt import GPT, PRESETS, GPTConfig, rotate, untrained
from tests.helpers import generator
from tests.train.toys import PLAIN, awake, random_ids, same


@pytest.mark.parametrize(("name", "millions"), [("tiny", 0.84), ("small", 3.09), ("golf", 36.5)])
def test_preset_sizes(name: str, millions: float):
    with torch.device("meta"):
        blocks = GPT(PRESETS[name])
    assert sum(param.numel() for param in blocks.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_logits_are_causal():
    model, ids = awake(), random_ids(2, 12)
    changed = ids.clone()
    changed[:, 7] = (ids[:, 7] + 1) % PLAIN.vocab_size
    with torch.no_grad():
        a, b = model.forward_logits(ids), model.forward_logits(changed)
    assert torch.equal(a[:, :7], b[:, :7])
    assert (a[:, 7:] - b[:, 7:]).abs().amax(-1).min() > 1e-4


def test_logits_and_loss():
    model, ids = awake(), random_ids(2, 9)
    logits = model.forward_logits(ids[:, :-1])
    assert logits.shape == (2, 8, 50)
    assert logits.dtype == torch.float32
    assert logits.abs().max() < PLAIN.softcap
    loss = model(ids[:, :-1], ids[:, 1:])
    assert torch.equal(loss, F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def test_compiles_without_a_graph_break():
    """The tracer alone: generating code needs a compiler that not every machine has."""
    model, ids = awake(), random_ids(2, 9)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(ids[:, :-1], ids[:, 1:]), model(ids[:, :-1], ids[:, 1:]), atol=1e-6)


def test_every_parameter_learns():
    model, ids = awake(), random_ids(2, 9)
    model(ids[:, :-1], ids[:, 1:]).backward()
    still = [name for name, param in model.named_parameters() if param.grad is None or not param.grad.any()]
    assert still == []


def test_skips_join_the_first_half_to_the_second():
    """Blocks 0 and 1 push, 2 is the middle, 3 pops what 1 pushed and 4 what 0 pushed."""
    model = GPT(PLAIN)
    assert [block.skip is not None for block in model.blocks] == [False, False, False, True, True]
    seen: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[2])))
    model.forward_logits(random_ids(1, 4))
    inputs, skips = zip(*seen, strict=True)
    assert skips[:3] == (None, None, None)
    assert skips[3] is inputs[1]
    assert skips[4] is inputs[0]


def test_rotation_depends_on_distance_alone():
    """q·k after RoPE is the same for every pair of positions at one distance, and the rest of the head is untouched."""
    g = generator(3)
    q, k = (torch.randn(12, generator=g).expand(1, 20, 1, 12) for _ in range(2))
    angle = torch.arange(20)[:, None] * torch.tensor([1.0, 0.1, 0.01])
    cos, sin = angle.cos()[None, :, None], angle.sin()[None, :, None]
    rq, rk = rotate(q, cos, sin), rotate(k, cos, sin)
    assert torch.equal(rq[..., 6:], q[..., 6:])
    scores = rq[0, :, 0] @ rk[0, :, 0].T
    for distance in (0, 1, 7):
        diagonal = scores.diagonal(-distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-4)
    assert not torch.allclose(scores[1, 0], scores[7, 0], atol=1e-3)


def test_weights_come_from_the_seed_and_global_state_is_untouched():
    before = torch.random.get_rng_state()
    a, b, c = GPT(PLAIN, seed=5), GPT(PLAIN, seed=5), GPT(PLAIN, seed=6)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(a, b)
    assert not torch.equal(a.tok_emb.weight, c.tok_emb.weight)


def test_bfloat16_compute_keeps_float32_weights():
    """Tolerance: bfloat16 has 8 bits of mantissa and the logits here reach about 1."""
    full, half = awake(), awake(compute_dtype=torch.bfloat16)
    ids = random_ids(2, 12)
    with torch.no_grad():
        a, b = full.forward_logits(ids), half.forward_logits(ids)
    assert {param.dtype for param in half.parameters()} == {torch.float32}
    assert b.dtype == torch.float32
    assert (a - b).abs().max() < 0.05 * a.abs().max()


def test_checkpoint_config_rebuilds_the_model():
    state = GPT(PLAIN, seed=9).state_dict()
    model = untrained({"gpt": asdict(PLAIN)}, state)
    model.load_state_dict(state)
    assert model.config == PLAIN


def test_a_checkpoint_without_options_is_the_model_that_it_was():
    """Logits taken before there were options, of weights that a formula gives."""
    old = {"vocab_size": 50, "layers": 5, "dim": 64, "heads": 4, "kv_heads": 2, "mlp_mult": 2, "rope_dims": 8}
    model = untrained({"gpt": old}, GPT(GPTConfig(**old)).state_dict())
    assert len(list(model.parameters())) == 48
    with torch.no_grad():
        for i, param in enumerate(model.parameters()):
            wave = torch.sin(torch.arange(param.numel(), dtype=torch.float64) * 0.7 + i)
            param.copy_((wave * 0.3 + (param.ndim == 1)).view_as(param))
        logits = model.forward_logits(torch.arange(24).view(2, 12) * 7 % 50)
    assert logits[0, 11, :4].tolist() == pytest.approx([-0.966344, -2.003847, -1.776187, -0.425447], abs=1e-4)
    assert logits[1, 5, 20:24].tolist() == pytest.approx([2.033216, 2.131387, 0.883633, -0.925709], abs=1e-4)


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"vocab_size": 10**9}, ValueError, "hold 1"),
        ({"layers": 10**9}, ValueError, "1000000000 layers"),
        ({"dim": 64.0}, TypeError, "dim is 64.0"),
        ({"softcap": float("nan")}, TypeError, "softcap is nan"),
        ({"heads": -4, "kv_heads": -2, "rope_dims": -20}, TypeError, "heads is -4"),
    ],
)
def test_configurations_that_lie_are_refused_before_anything_is_built(changed, error, says):
    with pytest.raises(error, match=says):
        untrained({"gpt": asdict(PLAIN) | changed}, GPT(PLAIN).state_dict())


def test_shapes_that_do_not_divide_are_refused():
    with pytest.raises(UsageError, match="must divide"):
        GPTConfig(vocab_size=10, layers=1, dim=64, heads=5, kv_heads=1, mlp_mult=1)
    with pytest.raises(UsageError, match="rope_dims 16 must be even and at most the head's 8"):
        GPTConfig(vocab_size=10, layers=1, dim=64, heads=8, kv_heads=1, mlp_mult=1)
