"""Sums, their merging and their file; the Kronecker product that `get` makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from pgolf.errors import CurvatureError
from pgolf.quant.curvature.collect import calibrate
from pgolf.quant.curvature.store import Curvature, Key, Sums
from tests.quant.test_collect import Banks, Matmul, batches


def square(n: int, seed: int) -> Tensor:
    x = torch.randn(2 * n, n, generator=torch.Generator().manual_seed(seed))
    return x.T @ x


def one(*sums: tuple[str, Sums], shape: tuple[int, ...] = (3, 2), tokens: int = 10) -> Curvature:
    return Curvature(tokens=tokens, shapes={"w": shape}, sums={Key("w", 0, use): s for use, s in sums})


def test_a_single_use_is_divided_by_tokens_and_uses() -> None:
    G, H = square(3, 0), square(2, 1)
    (found,) = one(("linear", Sums(G, H, 20.0))).get("w")
    assert torch.allclose(found.H, H / 10)  # two uses a token: the loop's inputs add up
    assert torch.allclose(found.G, G / 20)


def test_several_uses_keep_both_partial_traces() -> None:
    terms = {
        "linear": Sums(square(3, 0), square(2, 1), 10.0),
        "lookup": Sums(torch.tensor([1.0, 0, 4]), square(2, 2), 5.0),
    }
    (found,) = one(*terms.items()).get("w")
    whole = torch.zeros(3, 2, 3, 2)
    for s in terms.values():
        rows = s.rows if s.rows.dim() == 2 else s.rows.diag()
        whole += torch.einsum("ab,cd->acbd", rows, s.cols) / (s.uses * 10)
    assert torch.allclose(found.G * found.H.trace(), torch.einsum("acac->a", whole))
    assert torch.allclose(found.G.sum() * found.H, torch.einsum("acad->cd", whole))


def test_only_one_side() -> None:
    (found,) = one(("linear", Sums(None, square(2, 1), 20.0))).get("w")
    assert found.G is None
    assert torch.allclose(found.H, square(2, 1) / 10)
    (found,) = one(("transposed", Sums(square(3, 1), None, 10.0))).get("w")
    assert torch.equal(found.H, torch.eye(2))
    assert torch.allclose(found.G, square(3, 1) / 10)


def test_scale_grows_with_the_number_of_batches() -> None:
    G, H = square(3, 0), square(2, 1)
    curvature = one(("linear", Sums(G, H, 10.0)))
    curvature.squares, curvature.batches = {"w": [4 * 10 * float(G.trace() * H.trace()) / 100]}, 3
    (found,) = curvature.get("w")
    assert torch.allclose(found.G, G / 10 * 4**0.75)
    assert torch.allclose(curvature.get("w", scaled=False)[0].G, G / 10)


def test_unused_slices_and_unknown_names() -> None:
    curvature = Curvature(
        tokens=1, shapes={"b": (2, 3, 2)}, sums={Key("b", 1, "linear"): Sums(square(3, 0), square(2, 0), 1)}
    )
    first, second = curvature.get("b")
    assert first is None
    assert second.H.shape == (2, 2)
    assert curvature.get("elsewhere") is None


def test_merging_is_calibrating_on_everything() -> None:
    whole = calibrate(Banks(), batches(), output_side=False)
    parts = [calibrate(Banks(), [ids], output_side=False) for ids in batches()]
    for merged in (parts[0].merge(parts[1:]), parts[0].merge([parts[1].merge([parts[2]])])):
        assert merged.tokens == whole.tokens
        assert merged.coverage == whole.coverage
        for name in ("qo", "kv", "emb.weight"):
            for a, b in zip(merged.get(name), whole.get(name), strict=True):
                assert torch.allclose(a.H, b.H, rtol=1e-5)


def test_merging_leaves_the_parts_alone() -> None:
    a, b = (calibrate(Banks(), [ids]) for ids in batches()[:2])
    before = a.get("kv")[0].H.clone()
    merged = a.merge([b])
    assert torch.equal(a.get("kv")[0].H, before)
    assert merged.batches == 2
    assert merged.squares["kv"] == pytest.approx([x + y for x, y in zip(a.squares["kv"], b.squares["kv"], strict=True)])


def test_foreign_models_and_mixed_kinds_do_not_merge() -> None:
    a, b, c = (
        calibrate(Banks(), batches()),
        calibrate(Matmul(), batches()),
        calibrate(Banks(), batches(), full_output=False),
    )
    with pytest.raises(CurvatureError, match="different models"):
        a.merge([b])
    with pytest.raises(CurvatureError, match="diagonal"):
        a.merge([c])


def test_round_trip_is_exact_and_deterministic(tmp_path: Path) -> None:
    curvature = calibrate(Banks(), batches())
    curvature.unknown = {"kv": {"b", "a"}}
    curvature.save(tmp_path / "a")
    loaded = Curvature.load(tmp_path / "a")
    loaded.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    with safe_open(tmp_path / "a", "pt") as file:
        tensors, told = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    assert (tmp_path / "a").read_bytes() == save(tensors, told)  # as safetensors itself has it
    assert (loaded.tokens, loaded.coverage, loaded.squares) == (curvature.tokens, curvature.coverage, curvature.squares)
    for name in ("qo", "kv", "mlp", "emb.weight"):
        for a, b in zip(loaded.get(name), curvature.get(name), strict=True):
            assert torch.equal(a.H, b.H)
            assert torch.equal(a.G, b.G)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "curvature.safetensors"
    calibrate(Banks(), batches()[:1]).save(path)
    return path


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-5], lambda b: b[:40], lambda b: b"", lambda b: b + b"0", lambda b: b"junk" * 99]
)
def test_damaged_files(saved: Path, damage) -> None:
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(CurvatureError, match="curvature"):
        Curvature.load(saved)


def header_of(path: Path) -> dict:
    data = path.read_bytes()
    return json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["pgolf.curvature"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h.update(format=99), "format 99"),
        (lambda h: h.pop("sums"), "damaged"),
        (lambda h: h["shapes"].update(kv=[2, 5, 8]), "shape"),
        (lambda h: h["sums"].pop(), "belong to nothing"),
        (lambda h: h.update(tokens=0), "tokens"),
    ],
)
def test_inconsistent_headers(saved: Path, change, words: str) -> None:
    from safetensors.torch import load_file

    header = header_of(saved)
    change(header)
    save_file(load_file(saved), saved, {"pgolf.curvature": json.dumps(header)})
    with pytest.raises(CurvatureError, match=words):
        Curvature.load(saved)


def test_other_safetensors_and_missing_files(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CurvatureError, match="pgolf calibrate"):
        Curvature.load(tmp_path / "model.safetensors")
    with pytest.raises(CurvatureError, match="absent"):
        Curvature.load(tmp_path / "absent")
    with pytest.raises(CurvatureError, match="cannot write"):
        calibrate(Banks(), batches()[:1]).save(tmp_path / "no" / "folder")
