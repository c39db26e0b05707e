import subprocess
import sys

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import pgolf
from pgolf.errors import ArtifactError, BudgetError, CheckpointError, CurvatureError, ModelError, UsageError
from pgolf.loading import dense
from pgolf.models import checkpoint
from pgolf.packer.format import artifact
from pgolf.quant import METHODS
from pgolf.quant.curvature.store import MatrixCurvature
from tests.helpers import generator, toy_module, toy_state

CLASSIC = ["rtn", "sdclip", "hessian-sdclip", "gptq-lite", "gptq"]


def varied_state() -> dict[str, torch.Tensor]:
    g = generator(1)
    shared = torch.randn(64, 48, generator=g)
    return toy_state() | {
        "head": shared,
        "tied head ⊗ with\nany 'name'": shared,
        "bank": torch.randn(3, 32, 48, generator=g),
        "half": torch.randn(64, 40, generator=g).to(torch.bfloat16),
        "transposed": torch.randn(40, 64, generator=g).t(),
        "nothing": torch.zeros(0, 7),
        "step": torch.tensor(12345678901),
        "mask": torch.tensor([[True, False], [False, True]]),
        "double": torch.randn(64, 33, generator=g, dtype=torch.float64),
        "zeros": torch.zeros(64, 48),
        "constant": torch.full((64, 48), 0.25),
        "conv": torch.randn(64, 8, 5, generator=g),
        "one value": torch.tensor(2.5, dtype=torch.float16),
    }


@pytest.mark.parametrize("coder", artifact.CODERS)
def test_load_returns_exactly_codes_times_scales(tmp_path, coder):
    state = varied_state()
    pgolf.pack(state, tmp_path / "m.pgolf", method="sdclip", coder=coder)
    entries, _ = dense.read(tmp_path / "m.pgolf")
    loaded = pgolf.load(tmp_path / "m.pgolf")
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape), name
        planes = entries[name].planes
        if planes:
            rows = [torch.from_numpy(p.codes * p.row_scale.values()[:, None]) for p in planes]
            assert torch.equal(loaded[name], torch.stack(rows).reshape(tensor.shape).to(tensor.dtype)), name
            assert not torch.equal(loaded[name], tensor) or name in {"zeros", "constant"}
        elif entries[name].alias is None:
            assert torch.equal(loaded[name], tensor), name
    a, b = loaded["head"], loaded["tied head ⊗ with\nany 'name'"]
    assert a.data_ptr() == b.data_ptr()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_packs_and_is_close(tmp_path, method):
    state = toy_state()
    report = pgolf.pack(state, tmp_path / "m.pgolf", method=method)
    loaded = pgolf.load(tmp_path / "m.pgolf")
    for name in ("tok_emb.weight", "up.weight", "down.weight"):
        error = float((loaded[name] - state[name]).norm() / state[name].norm())
        assert 0 < error < 0.25
        assert next(r for r in report.rows if r.name == name).error == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("method", CLASSIC)
def test_a_budget_is_filled_and_never_exceeded(tmp_path, method):
    state = toy_state(width=128)
    for budget in (9_000, 12_000, 16_000):
        report = pgolf.pack(state, tmp_path / "m.pgolf", budget=budget, method=method)
        assert (tmp_path / "m.pgolf").stat().st_size == report.artifact_bytes <= budget
        assert report.headroom <= 0.03 * budget, (budget, report.step)


def test_a_larger_budget_buys_a_smaller_error(tmp_path):
    state = toy_state(width=128)
    errors = [
        sum(r.error or 0 for r in pgolf.pack(state, tmp_path / "m.pgolf", budget=b, method="sdclip").rows)
        for b in (7_000, 10_000, 14_000)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_code_files_count_against_the_budget(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("\n".join(f"def f{i}(x):\n    return x * {i * 7919 % 1000}" for i in range(200)))
    alone = pgolf.pack(toy_state(width=128), tmp_path / "a.pgolf", budget=12_000, method="sdclip")
    report = pgolf.pack(toy_state(width=128), tmp_path / "b.pgolf", budget=12_000, method="sdclip", code=[script])
    assert 0 < report.code_bytes[str(script)] < script.stat().st_size / 2
    assert report.total_bytes <= 12_000
    assert report.artifact_bytes < alone.artifact_bytes


def test_a_budget_out_of_reach_says_how_small_it_can_get(tmp_path):
    with pytest.raises(BudgetError, match=r"300 B are left.*smallest reachable is [\d,]+ B.*gain") as caught:
        pgolf.pack(toy_state(), tmp_path / "m.pgolf", budget=300, method="sdclip")
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


def test_fixed_steps_leave_nothing_to_search(tmp_path):
    with pytest.raises(BudgetError, match="fixed by --set"):
        pgolf.pack(toy_state(), tmp_path / "m.pgolf", budget=1000, method="sdclip", rules=["*.weight=k=12"])
    free = pgolf.pack(toy_state(), tmp_path / "m.pgolf", method="sdclip", rules=["*.weight=int8,k=12"])
    fixed = pgolf.pack(toy_state(), tmp_path / "m.pgolf", budget="1MB", method="sdclip", rules=["*.weight=int8,k=12"])
    assert fixed.artifact_bytes == free.artifact_bytes


def test_code_alone_over_budget(tmp_path):
    (tmp_path / "data.txt").write_text("x" * 500)
    with pytest.raises(BudgetError, match="code alone counts 500 B"):
        pgolf.pack(toy_state(), tmp_path / "m.pgolf", budget=400, code=[tmp_path / "data.txt"])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_same_bytes_for_any_order_and_thread_count(method):
    state = varied_state()
    threads = torch.get_num_threads()
    first = pgolf.pack(state, None, method=method).data
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert pgolf.pack(dict(reversed(state.items())), None, method=method).data == first
    finally:
        torch.set_num_threads(threads)


def test_the_global_generator_is_untouched():
    before = torch.random.get_rng_state()
    pgolf.pack(toy_state(), None, method="gptq")
    assert torch.equal(before, torch.random.get_rng_state())


def test_nothing_is_written_when_packing_fails(tmp_path):
    (tmp_path / "m.pgolf").write_bytes(b"old")
    with pytest.raises(CheckpointError):
        pgolf.pack({"w": torch.tensor([float("nan")])}, tmp_path / "m.pgolf")
    assert (tmp_path / "m.pgolf").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


class FakeCurvature:
    """A curvature of the toy model, by hand."""

    notes: tuple[str, ...] = ()
    unreached: frozenset[str] = frozenset()

    def __init__(self, width: int = 48) -> None:
        g = generator(2)
        x = torch.randn(500, 96, generator=g) * torch.rand(96, generator=g) ** 3
        self.known = {"down.weight": MatrixCurvature(x.T @ x / 500, torch.rand(width, generator=g))}

    def matrices(self, name: str) -> list[MatrixCurvature | None] | None:
        return [self.known[name]] if name in self.known else None


def test_curvature_lowers_the_predicted_rise(tmp_path):
    def rise(method):
        report = pgolf.pack(
            toy_state(), tmp_path / "m.pgolf", method=method, curvature=FakeCurvature(), rules=["*=int3,k=3"]
        )
        return report.loss_rise

    assert 0 < rise("gptq") < 0.9 * rise("sdclip")


def test_a_budget_that_destroys_the_model_is_said_so():
    report = pgolf.pack(toy_state(width=128), None, budget=1500)
    assert any("too few bytes for this model: of 3 of 3 quantized tensors" in note for note in report.notes)


def test_tensors_without_curvature_are_named():
    report = pgolf.pack(toy_state(), None, curvature=FakeCurvature())
    assert any("without curvature" in n and "tok_emb.weight, up.weight" in n for n in report.notes)
    assert pgolf.pack(toy_state(), None).notes == []


def test_a_target_rise_is_met_by_the_smallest_artifact():
    made = [
        pgolf.pack(toy_state(), None, curvature=FakeCurvature(), target_rise=rise, rules=["tok_emb*=keep", "up*=keep"])
        for rise in (1e-4, 1e-3)
    ]
    assert made[0].loss_rise == pytest.approx(1e-4, rel=0.03)
    assert made[1].loss_rise == pytest.approx(1e-3, rel=0.03)
    assert made[1].artifact_bytes < made[0].artifact_bytes
    with pytest.raises(UsageError, match="needs curvature"):
        pgolf.pack(toy_state(), None, target_rise=0.1)
    with pytest.raises(UsageError, match="not both"):
        pgolf.pack(toy_state(), None, target_rise=0.1, budget=1000)


def test_curvature_of_another_model_is_refused():
    with pytest.raises(CurvatureError, match=r"down\.weight.*another"):
        pgolf.pack({"down.weight": torch.randn(48, 64)}, None, curvature=FakeCurvature())
    with pytest.raises(CurvatureError, match="none of the checkpoint's tensors"):
        pgolf.pack({"w": torch.randn(48, 64)}, None, curvature=FakeCurvature())


def test_a_module_packs_like_its_state_dict_and_loads_back(tmp_path):
    module = toy_module(toy_state())
    assert pgolf.pack(module, None, method="sdclip").data == pgolf.pack(toy_state(), None, method="sdclip").data
    pgolf.pack(module, tmp_path / "m.pgolf", method="sdclip")
    other = pgolf.load_into(tmp_path / "m.pgolf", toy_module(toy_state(5)))
    assert torch.equal(other.up.weight, pgolf.load(tmp_path / "m.pgolf")["up.weight"])
    with pytest.raises(ModelError, match="missing"):
        pgolf.load_into(tmp_path / "m.pgolf", torch.nn.Linear(2, 2))


def test_inspect_names_everything(tmp_path):
    pgolf.pack(varied_state(), tmp_path / "m.pgolf", method="sdclip")
    facts = pgolf.inspect(tmp_path / "m.pgolf")
    by_name = {t["name"]: t for t in facts["tensors"]}
    assert facts["bytes"] == (tmp_path / "m.pgolf").stat().st_size
    assert by_name.keys() == varied_state().keys()
    assert by_name["bank"]["planes"] == 3
    assert by_name["mask"]["kept_as"] == "bool"
    assert by_name["tied head ⊗ with\nany 'name'"]["shared_with"] == "head"


def test_foreign_and_missing_artifacts(tmp_path):
    (tmp_path / "m.pgolf").write_bytes(b"not an artifact")
    with pytest.raises(ArtifactError, match=r"m\.pgolf: not a pgolf artifact"):
        pgolf.load(tmp_path / "m.pgolf")
    with pytest.raises(ArtifactError, match="No such file"):
        pgolf.load(tmp_path / "none")


def test_config_travels_in_the_artifact(tmp_path):
    torch.save({"model": toy_state(), "config": {"arch": "mine", "n": 3}}, tmp_path / "c.pt")
    pgolf.pack(checkpoint.read(tmp_path / "c.pt"), tmp_path / "m.pgolf", method="sdclip")
    assert pgolf.inspect(tmp_path / "m.pgolf")["meta"] == {"config": {"arch": "mine", "n": 3}}


@settings(max_examples=20, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    rows=st.integers(8, 60),
    cols=st.integers(8, 60),
    exponent=st.integers(-30, 30),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    method=st.sampled_from(sorted(METHODS)),
    seed=st.integers(0, 99),
)
def test_any_matrix_survives_any_method(rows, cols, exponent, dtype, method, seed):
    tile = torch.randn(rows, cols, generator=generator(seed), dtype=torch.float64) * 10.0**exponent
    w = tile.to(dtype).repeat(-(-2048 // (rows * cols)), 1)
    loaded = dense.tensors_of(artifact.decode(pgolf.pack({"w": w}, None, method=method).data)[0])["w"]
    assert torch.isfinite(loaded).all()
    assert (loaded.double() - w.double()).norm() <= 0.5 * w.double().norm()


def test_importing_pgolf_is_light():
    code = "import sys, pgolf; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'numba')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys, pgolf.cli; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'numba')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_curvature_of_a_wrapped_module_is_found(prefix):
    plain = pgolf.pack(toy_state(), None, curvature=FakeCurvature(), method="gptq")
    wrapped = {prefix + name: t for name, t in toy_state().items()}
    report = pgolf.pack(wrapped, None, curvature=FakeCurvature(), method="gptq")
    assert report.loss_rise == plain.loss_rise
    assert {row.name for row in report.rows} == set(toy_state())


def test_a_path_packs_as_what_is_in_it(tmp_path):
    torch.save(toy_state(), tmp_path / "c.pt")
    assert pgolf.pack(tmp_path / "c.pt", None, method="rtn").data == pgolf.pack(toy_state(), None, method="rtn").data


def test_what_is_sharded_over_ranks_is_refused():
    class FullyShardedDataParallel(torch.nn.Linear):
        pass

    with pytest.raises(CheckpointError, match="sharded"):
        pgolf.pack(FullyShardedDataParallel(4, 4), None)
