import json

import pytest
import torch
from click.testing import CliRunner

import pgolf
from pgolf.cli import main
from pgolf.errors import BudgetError
from pgolf.fitting import estimate
from tests.fitting.test_packing import FakeCurvature
from tests.helpers import SHARED, generator, toy_state


def deep_state(layers=7, width=96):
    """Matrices of several sizes and spreads, vectors beside them, as a small transformer has."""
    g = generator(3)
    state = {"tok_emb.weight": torch.randn(512, width, generator=g) * torch.rand(512, 1, generator=g)}
    for i in range(layers):
        spread = torch.exp(0.4 * torch.randn(1, width, generator=g))
        state[f"{i}.up.weight"] = 0.05 * spread * torch.randn(3 * width, width, generator=g)
        state[f"{i}.down.weight"] = 0.03 * torch.randn(width, 3 * width, generator=g) * spread.T
        state[f"{i}.norm"] = torch.rand(width, generator=g)
    return state


@pytest.mark.parametrize("arguments", [{}, {"method": "sdclip"}, {"budget": "9kB"}, {"method": "gptq"}])
def test_a_small_model_is_told_exactly(arguments):
    found, made = pgolf.estimate(toy_state(), **arguments), pgolf.pack(toy_state(), None, **arguments)
    assert (found.num_bytes, found.error_bytes, found.sampled) == (made.artifact_bytes, 0, 1.0)
    assert found.bits_per_weight == pytest.approx(made.bits_per_weight)
    assert found.fits is (None if "budget" not in arguments else True)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"budget": "250kB"}, {"budget": "120kB"}, {"method": "quick"}, {"method": "gptq"}, {"rules": ["0.*=keep"]}],
)
def test_a_sample_foresees_bytes_within_two_percent(monkeypatch, arguments):
    monkeypatch.setattr(estimate, "SAMPLE", 100_000)
    found, made = pgolf.estimate(deep_state(), **arguments), pgolf.pack(deep_state(), None, **arguments)
    assert 0 < found.sampled < 1 or arguments.get("method") in {"quick", "gptq"}
    assert found.num_bytes == pytest.approx(made.artifact_bytes, rel=0.02)
    assert abs(found.num_bytes - made.artifact_bytes) <= 2 * found.error_bytes
    errors = [(r.error, r.name) for r in made.rows if r.error is not None]
    assert 0.99 * min(errors)[0] <= found.relative_error <= 1.01 * max(errors)[0]


def test_the_rise_is_known_only_with_curvature():
    blind = pgolf.estimate(toy_state())
    assert blind.loss_rise is None
    assert any("without curvature" in note for note in blind.notes)
    seen = pgolf.estimate(toy_state(), curvature=FakeCurvature())
    assert seen.loss_rise == pytest.approx(pgolf.pack(toy_state(), None, curvature=FakeCurvature()).loss_rise)


def test_a_budget_out_of_reach_does_not_fit():
    found = pgolf.estimate(toy_state(), budget=300)
    assert found.fits is False
    assert found.num_bytes > 300
    with pytest.raises(BudgetError, match="code alone"):
        pgolf.estimate(toy_state(), budget=1, code=[__file__])


def test_the_command_line_says_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(toy_state(), "ckpt.pt")
    done = CliRunner().invoke(main, ["estimate", "ckpt.pt", "--budget", "9kB", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["num_bytes"] == pgolf.estimate(toy_state(), budget="9kB").num_bytes
    assert "bits each" in CliRunner().invoke(main, ["estimate", "ckpt.pt"]).stdout
    late = CliRunner().invoke(main, ["estimate", "ckpt.pt", "--budget", "300"])
    assert late.exit_code == 4
    assert "would not fit" in late.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
@pytest.mark.parametrize("arguments", [{}, {"budget": "800kB"}, {"method": "gptq"}])
def test_golf3m_within_two_percent(arguments):
    state = torch.load(SHARED / "golf3m" / "ckpt.pt", weights_only=True)
    found, made = pgolf.estimate(state, **arguments), pgolf.pack(state, None, **arguments)
    assert found.num_bytes == pytest.approx(made.artifact_bytes, rel=0.02)
