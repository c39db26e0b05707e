"""`--method keep`: a checkpoint that somebody else quantized, coded without touching a value."""

import brotli
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import pgolf
from pgolf.cli import main
from pgolf.fitting import plan
from tests.helpers import generator


def sdclip_codes(rows=256, cols=256, seed=0, bits=6):
    """int8 codes and float16 row scales as entrants store them: Gaussian rows, step 12.85 sigma over the grid."""
    g = generator(seed)
    weight = torch.randn(rows, cols, generator=g) * torch.exp(0.4 * torch.randn(1, cols, generator=g))
    top = 2 ** (bits - 1) - 1
    scale = 12.85 * weight.std(dim=1) / top
    return (weight / scale[:, None]).round().clamp(-top, top).to(torch.int8), scale.half()


def entrants_state():
    state = {}
    for i in range(4):
        state[f"{i}.weight.q"], state[f"{i}.weight.scale"] = sdclip_codes(seed=i)
    state["norm"] = torch.rand(64, generator=generator())
    return state


def packed(state, **options):
    return pgolf.pack(state, None, method="keep", **options)


def loaded(state, tmp_path):
    pgolf.pack(state, tmp_path / "m.pgolf", method="keep")
    return pgolf.load(tmp_path / "m.pgolf")


def test_every_value_comes_back_and_the_codes_beat_brotli(tmp_path):
    state = entrants_state()
    back = loaded(state, tmp_path)
    assert all(torch.equal(back[n], t) and back[n].dtype == t.dtype for n, t in state.items())
    report = packed(state)
    ours = sum(row.num_bytes for row in report.rows if row.name.endswith(".q"))
    codes = b"".join(t.numpy().tobytes() for n, t in state.items() if n.endswith(".q"))
    assert ours < 0.985 * len(brotli.compress(codes, quality=11, lgwin=24))
    rows = [row for row in report.rows if row.name.endswith(".q")]
    assert {(row.method, row.kept) for row in rows} == {("kept as int8 codes", "asked for with --method keep")}
    assert report.loss_rise is None
    assert all(row.error is None for row in report.rows)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(70000).reshape(700, 100),
        torch.randint(0, 2, (64, 64), generator=generator(), dtype=torch.uint8),
        torch.randint(-128, 128, (3, 64, 64), generator=generator(), dtype=torch.int8),
        torch.randint(-900, 900, (4096,), generator=generator(), dtype=torch.int16),
        torch.randint(0, 256, (64, 64), generator=generator(), dtype=torch.uint8),
        torch.randint(-9, 9, (64, 64), generator=generator()).t(),
        torch.full((64, 64), 2**40),
        torch.full((64, 64), -7, dtype=torch.int32),
        torch.rand(64, 64, generator=generator()),
        torch.zeros(0, 5, dtype=torch.int8),
    ],
)
def test_any_tensor_is_kept(tensor, tmp_path):
    back = loaded({"t": tensor}, tmp_path)["t"]
    assert torch.equal(back, tensor)
    assert back.dtype == tensor.dtype


def test_tables_are_left_to_the_dictionary_coder():
    assert not plan.coded_better(torch.arange(4000) % 4000)
    assert not plan.coded_better(torch.ones(64, 64, dtype=torch.bool))
    assert plan.coded_better(sdclip_codes()[0])


def test_codes_of_a_model_that_is_quantized_otherwise_are_coded_too():
    codes, _ = sdclip_codes()
    report = pgolf.pack({"codes": codes, "w": torch.randn(64, 64, generator=generator())}, None)
    row = next(row for row in report.rows if row.name == "codes")
    assert row.num_bytes < 0.55 * codes.numel()
    assert row.kept == "not floating point"


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 99),
    spread=st.floats(0.1, 60),
    dtype=st.sampled_from([torch.int8, torch.int16, torch.int32, torch.int64]),
    shape=st.sampled_from([(50, 60), (4, 30, 30), (2500,)]),
)
def test_codes_of_any_spread_round_trip(seed, spread, dtype, shape):
    values = np.random.default_rng(seed).normal(0, spread, shape).round()
    limit = 127 if dtype == torch.int8 else 10**6
    tensor = torch.from_numpy(values).clamp(-limit, limit).to(dtype)
    from pgolf.loading.dense import tensors_of
    from pgolf.packer.format import artifact

    assert torch.equal(tensors_of(artifact.decode(packed({"t": tensor}).data)[0])["t"], tensor)


def test_the_command_line_takes_a_whole_nest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    codes, scale = sdclip_codes()
    nest = {
        "format": "int8_per_row",
        "quantized": {"a.weight": codes, "b.weight": codes + 1},
        "scales": {"a.weight": scale, "b.weight": scale},
        "passthrough": {"norm": torch.ones(5)},
        "dtypes": {"a.weight": "bfloat16"},
    }
    torch.save(nest, "q.pt")
    done = CliRunner().invoke(main, ["pack", "q.pt", "--method", "keep"])
    assert done.exit_code == 0, done.stderr
    back = pgolf.load("q.pgolf")
    assert torch.equal(back["quantized.b.weight"], codes + 1)
    assert torch.equal(back["scales.a.weight"], scale)
    assert pgolf.inspect("q.pgolf")["meta"]["config"] == {"format": "int8_per_row", "dtypes.a.weight": "bfloat16"}
    assert "several state dicts" in CliRunner().invoke(main, ["pack", "q.pt", "-o", "r.pgolf"]).stderr
