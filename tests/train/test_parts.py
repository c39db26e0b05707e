"""Every modelling option: what it computes, that it stays causal, and that a document's start is a wall."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pgolf.errors import UsageError
from pgolf.train.model.gpt import GPTConfig
from pgolf.train.model.parts.bigram import BigramHash
from pgolf.train.model.parts.gate import HeadGate
from pgolf.train.model.parts.lanes import Routes
from pgolf.train.model.parts.loop import route
from pgolf.train.model.parts.residual import ResidualMix
from pgolf.train.model.parts.smear import SmearGate
from pgolf.train.model.parts.spectrum import power_law
from pgolf.train.model.parts.values import ValueMix
from pgolf.train.model.parts.xsa import without_own_value
from tests.helpers import generator
from tests.train.toys import ALL, EVERY, NAMES, OPTIONS, PLAIN, awake, random_ids


@pytest.mark.parametrize("options", EVERY, ids=NAMES)
def test_logits_are_causal(options: dict):
    model, ids = awake(options), random_ids(2, 12)
    changed = ids.clone()
    changed[:, 7] = (ids[:, 7] - 1) % 48 + 2
    with torch.no_grad():
        a, b = model.forward_logits(ids), model.forward_logits(changed)
    assert torch.equal(a[:, :7], b[:, :7])
    assert (a[:, 7:] - b[:, 7:]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("options", EVERY, ids=NAMES)
def test_every_parameter_learns_and_every_option_matters(options: dict):
    model, ids = awake(options), random_ids(2, 9)
    model(ids[:, :-1], ids[:, 1:]).backward()
    still = [name for name, param in model.named_parameters() if param.grad is None or not param.grad.any()]
    assert still == []
    plain = awake().state_dict()
    model.load_state_dict({name: value for name, value in plain.items() if name != "tok_emb.weight"}, strict=False)
    with torch.no_grad():
        assert not torch.allclose(model.forward_logits(ids), awake().forward_logits(ids), atol=1e-3)


def test_all_options_compile_without_a_graph_break_with_the_loop_and_without():
    """The tracer alone; test_modelling.py generates code. The loop is switched by an attribute that it must guard."""
    model, ids = awake(ALL), random_ids(2, 9)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    losses = []
    with torch.no_grad():
        for model.looped in (False, True):
            losses.append(model(ids[:, :-1], ids[:, 1:]))
            assert torch.allclose(compiled(ids[:, :-1], ids[:, 1:]), losses[-1], atol=1e-6)
    assert not torch.allclose(*losses, atol=1e-4)


def test_bfloat16_compute_of_all_options():
    """Tolerance: bfloat16 has 8 bits of mantissa, and the looped blocks add their roundings twice."""
    full, half, ids = awake(ALL), awake(ALL, compute_dtype=torch.bfloat16), random_ids(2, 12)
    with torch.no_grad():
        a, b = full.forward_logits(ids), half.forward_logits(ids)
        assert half.forward_hidden(ids).dtype == torch.bfloat16
    assert (a - b).abs().max() < 0.08 * a.abs().max()


@pytest.mark.parametrize("options", [OPTIONS["smear"], OPTIONS["bigram"], ALL], ids=["smear", "bigram", "all"])
def test_nothing_crosses_the_start_of_a_document(options: dict):
    """The residual from BOS on does not depend on what stands before it; one without BOS does."""
    ids = random_ids(1, 10)
    ids[0, 5] = 1
    changed = ids.clone()
    changed[0, :5] = ids[0, :5].flip(0)
    for bos_id, crosses in ((1, False), (None, True)):
        model = awake(options | {"bos_id": bos_id})
        with torch.no_grad():
            a, b = model.embed(ids)[:, 5:], model.embed(changed)[:, 5:]
        assert torch.equal(a, b) != crosses


def test_smear_is_a_mix_with_the_token_before():
    gate, x = SmearGate(8, bos_id=1), torch.randn(1, 4, 8, generator=generator())
    y = gate(x, torch.tensor([[5, 6, 1, 7]]))
    g = gate.gate.sigmoid()
    assert torch.allclose(y[0, 1], (1 - g) * x[0, 1] + g * x[0, 0])
    assert torch.equal(y[0, [0, 2]], x[0, [0, 2]])
    assert torch.allclose(y[0, 3], (1 - g) * x[0, 3] + g * x[0, 2])


def test_bigram_buckets():
    """The last bucket is for no pair; the others are used evenly, and the order within a pair counts."""
    table = BigramHash(1000, 65, 4, 8, bos_id=1)
    ids = torch.randint(2, 1000, (1, 6401), generator=generator())
    ids[0, 100] = 1
    found = table.buckets(ids)[0]
    assert found[[0, 100]].tolist() == [64, 64]
    counts = found.bincount(minlength=65)
    assert counts[64] == 2
    assert counts[:64].min() > 50
    assert counts[:64].max() < 160
    assert table.buckets(torch.tensor([[7, 9]]))[0, 1] != table.buckets(torch.tensor([[9, 7]]))[0, 1]
    assert table.buckets(torch.tensor([[7, 9]]))[0, 1] == table.buckets(torch.tensor([[3, 7, 9]]))[0, 2]


def test_bigram_of_a_large_vocabulary_stays_in_its_table():
    """65,535² times the multiplier overflows int64: only the low 32 bits count."""
    table = BigramHash(65536, 4096, 4, 8, bos_id=None)
    found = table.buckets(torch.randint(0, 65536, (1, 1000), generator=generator()))
    assert found.min() >= 0
    assert found[:, 1:].max() < 4095


def test_exclusive_attention_is_orthogonal_to_the_own_value():
    """Each head against the value of its own group; what is left is otherwise untouched."""
    y, v = (torch.randn(2, 3, heads, 8, generator=generator(heads)) for heads in (4, 2))
    out = without_own_value(y, v)
    repeated = v.repeat_interleave(2, dim=2)
    assert (out * repeated).sum(-1).abs().max() < 1e-5
    removed = y - out
    assert F.cosine_similarity(removed, repeated, dim=-1).abs().min() > 0.999
    assert torch.equal(without_own_value(y, torch.zeros_like(v)), y)


def test_route_runs_the_middle_twice():
    config = GPTConfig(vocab_size=10, layers=6, dim=16, heads=2, kv_heads=1, mlp_mult=1, rope_dims=4, loop=2)
    assert [*route(6, config.looped)] == [
        (0, False), (1, False), (2, False), (3, False), (2, True), (3, True), (4, False), (5, False)
    ]  # fmt: skip
    assert [*route(3, range(0))] == [(0, False), (1, False), (2, False)]


def test_a_loop_that_is_off_is_the_plain_model():
    looped, plain = awake(OPTIONS["loop"]), awake()
    missing = looped.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {name.split(".")[2] for name in missing} == {"again"}
    assert sum("again.mlp.fc" in name for name in missing) == 1
    ids = random_ids(1, 9)
    with torch.no_grad():
        on = looped.forward_logits(ids)
        looped.looped = False
        off = looped.forward_logits(ids)
        assert torch.equal(off, plain.forward_logits(ids))
    assert not torch.allclose(on, off, atol=1e-3)


def test_power_law_spectrum():
    W = torch.randn(50, 16, generator=generator())
    shaped = power_law(W, 0.5)
    values = torch.linalg.svdvals(shaped)
    assert torch.allclose(values[0] / values, torch.arange(1, 17) ** 0.5, rtol=1e-4)
    assert shaped.norm() == pytest.approx(W.norm().item(), rel=1e-5)
    assert torch.allclose(power_law(W, 0.0).norm(), W.norm())


def test_parts_start_where_they_say():
    x, y = torch.randn(2, 3, 16, generator=generator()), torch.randn(2, 3, 4, 4, generator=generator(1))
    gate = HeadGate(12, 4)
    torch.nn.init.zeros_(gate.read.weight)
    assert torch.equal(gate(y, x), y)
    assert torch.allclose(ValueMix(4)(y, 3 * y), 2 * y)
    assert torch.allclose(ResidualMix(16, 0.5)(x, -x), torch.zeros_like(x), atol=1e-6)
    assert ResidualMix(16, 1.0).stream[0].item() == pytest.approx(0.8176, abs=1e-3)
    lanes = torch.stack([x, 2 * x])
    assert torch.allclose(Routes()(lanes, x, -x), lanes, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"xsa": 6}, "xsa 6 must lie between 0 and 5"),
        ({"smear": 2}, "smear 2 must lie between 0 and 1"),
        ({"loop": 1, "loop_untied": 2}, "loop_untied 2 must lie between 0 and 1"),
        ({"bigram_buckets": 1}, "bigram_buckets must be 0 or at least 2"),
        ({"loop": 3, "lanes": 2}, "loop 3 and lanes 2 overlap"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str):
    with pytest.raises(UsageError, match=message):
        replace(PLAIN, **options)
