"""Calibrating what trainers have: their batches, banks of gates, experts that nobody chose, sharded weights, threads."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

import pgolf
from pgolf.errors import CurvatureError
from pgolf.quant.curvature.batches import batches_of
from pgolf.quant.curvature.collect import _signs, calibrate
from pgolf.quant.curvature.selftext import self_generate, text_length
from pgolf.quant.curvature.store import Curvature
from pgolf.quant.slices import matrix_shape
from tests.quant.test_collect import Messy, V, batches

X = torch.arange(6).view(2, 3)
PADDED = {"input_ids": X, "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}


@pytest.mark.parametrize(
    ("batch", "wanted"),
    [
        (X, [[[0, 1, 2], [3, 4, 5]]]),
        ((X, X + 1), [[[0, 1, 2], [3, 4, 5]]]),
        ([X.int(), X], [[[0, 1, 2], [3, 4, 5]]]),
        ({"labels": X + 1, "input_ids": X}, [[[0, 1, 2], [3, 4, 5]]]),
        ((PADDED, None), [[[0, 1]], [[3, 4, 5]]]),
        ([{"input_ids": [1, 2]}, {"input_ids": [3, 4, 5]}], [[[1, 2]], [[3, 4, 5]]]),
        ([1, 2, 3], [[[1, 2, 3]]]),
        ([[1, 2], [3]], [[[1, 2]], [[3]]]),
        (X.numpy().astype(np.uint16), [[[0, 1, 2], [3, 4, 5]]]),
        (X[:0], []),
    ],
)
def test_what_a_loader_gives(batch: object, wanted: list[list[list[int]]]) -> None:
    found = list(batches_of([batch], None))
    assert [ids.tolist() for ids in found] == wanted
    assert all(ids.dtype == torch.int64 for ids in found)


@pytest.mark.parametrize(("batch", "words"), [({"text": "a"}, "without input_ids; it has text"), ("abc", "not str")])
def test_what_holds_no_ids(batch: object, words: str) -> None:
    with pytest.raises(CurvatureError, match=words):
        list(batches_of([batch], None))


def test_an_empty_batch_ends_nothing() -> None:
    assert [ids.tolist() for ids in batches_of([X[:0], X], 4)] == [[[0, 1, 2]]]


class Experts(nn.Module):
    """The expert of a token is its number's last bit; only even tokens come, and `gates` has a side under 8."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * 0.3)

        self.table = weight(32, 48)
        self.experts = nn.ParameterList([weight(48, 48), weight(48, 48)])
        self.bank = weight(2, 48, 48)
        self.gates = weight(12, 48, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table[ids].flatten(0, 1)
        out = torch.zeros_like(x)
        for k in range(2):
            mine = (ids.flatten() % 2 == k).nonzero()[:, 0]
            out = out.index_add(0, mine, F.linear(x[mine], self.experts[k]) + F.linear(x[mine], self.bank[k]))
        for gate in self.gates:
            out = out * torch.sigmoid((out @ gate).sum(-1, keepdim=True))
        return F.linear(out, self.table).view(*ids.shape, -1)


@pytest.fixture(scope="module")
def experts() -> tuple[Experts, Curvature]:
    model = Experts()
    even = 2 * torch.randint(16, (8, 32), generator=torch.Generator().manual_seed(1))
    return model, calibrate(model, even)


def test_an_expert_that_no_token_chose_is_named_and_priced(experts: tuple[Experts, Curvature]) -> None:
    model, curvature = experts
    assert curvature.unreached == {"experts.1"}
    assert curvature.seen("bank") == {0}
    assert curvature.get("bank")[1] is None
    report = pgolf.pack(model, None, budget="9kB", curvature=curvature)
    assert "no calibration token came to bank[1], experts.1: priced as the mean of their kind, if any" in report.notes
    rise = {row.name: row.loss_rise for row in report.rows}
    assert 0 < rise["experts.1"] < 100 * rise["experts.0"]
    assert not any("packed without curvature" in note for note in report.notes)


def test_a_bank_of_gates_is_one_matrix_for_plan_and_curvature(experts: tuple[Experts, Curvature]) -> None:
    curvature = experts[1]
    assert matrix_shape((12, 48, 4)) == (1, 12, 192)
    (whole,) = curvature.matrices("gates")
    slices = curvature.get("gates")
    assert (len(slices), whole.H.shape, whole.G.shape) == (12, (192, 192), (12,))
    E = torch.randn(1, 48, 4, generator=torch.Generator().manual_seed(0)).expand(12, -1, -1)

    def cost(m, error: Tensor) -> float:
        G = m.G.diag() if m.G.dim() == 1 else m.G
        return float((G @ error @ m.H * error).sum())

    alike = sum(cost(m, e) for m, e in zip(slices, E, strict=True))  # one error in all slices: the product is exact
    assert cost(whole, E.reshape(12, 192)) == pytest.approx(alike, rel=1e-4)


def test_curvature_keeps_its_notes(tmp_path: Path) -> None:
    curvature = calibrate(Experts(), X)
    curvature.notes.append("calibrated in sequences of 3 tokens")
    curvature.save(tmp_path / "c")
    assert Curvature.load(tmp_path / "c").notes == ["calibrated in sequences of 3 tokens"]


class Whole(nn.Module):
    """Takes multiples of 16 only."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(13, 64, generator=torch.Generator().manual_seed(0)))

    def forward(self, ids: Tensor) -> Tensor:
        assert ids.shape[1] % 16 == 0, "T % 16"
        return F.linear(self.table[ids].cumsum(1), self.table)


def test_text_of_its_own_under_a_rule_of_lengths() -> None:
    model = Whole()
    assert text_length(model, 100) == 96
    assert text_length(model, 72) == 48  # 64 is a size of the table, so that positions could not be told apart
    ids = self_generate(model, sequences=2, length=48)
    assert ids.shape == (2, 48)
    assert torch.equal(ids, self_generate(model, sequences=2, length=48))
    assert calibrate(model, [ids[:, :40]]).tokens == 64


def test_two_threads_calibrate_one_after_the_other() -> None:
    class Reentrant(Messy):
        reentrant = True

    alone = calibrate(Reentrant(), batches()).get("w.q")[0]
    found: list[Curvature] = []
    threads = [threading.Thread(target=lambda: found.append(calibrate(Reentrant(), batches()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for curvature in found:
        assert torch.equal(curvature.get("w.q")[0].H, alone.H)


def test_sharded_and_empty_parameters_are_refused(tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = Whole()
        mesh = init_device_mesh("cpu", (1,))
        model.table = nn.Parameter(DTensor.from_local(model.table.data, mesh, [Replicate()]))
        with pytest.raises(CurvatureError, match=r"'table' is sharded over ranks \(DTensor\)"):
            calibrate(model, X)
    finally:
        distributed.destroy_process_group()
    with pytest.raises(CurvatureError, match="'table' is on the meta device"):
        calibrate(Whole().to("meta"), X)


def test_signs_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _signs(torch.zeros(3, 5, V))
    monkeypatch.setattr("pgolf.quant.curvature.collect.SIGN_ROWS", 16)
    assert torch.equal(_signs(torch.zeros(3, 5, V)), whole)
    assert set(whole.flatten().tolist()) == {-1.0, 1.0}
