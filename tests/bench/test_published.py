"""Methods rebuilt from papers do what their papers say, and rivals get whole models as matrices."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import published
from pgolf.quant import MatrixCurvature, Settings
from tests.helpers import generator

pytest.importorskip("gguf")
from benchmarks import rival_quantizers


def problem(rows=96, cols=64):
    """A matrix, and inputs of which few directions are strong."""
    made = generator(3)
    inputs = torch.randn(4 * cols, cols, generator=made) * torch.logspace(0, -1.5, cols)
    turn = torch.linalg.qr(torch.randn(cols, cols, generator=made)).Q
    H = (inputs @ turn).T @ (inputs @ turn) / len(inputs)
    return torch.randn(rows, cols, generator=made) * 0.02, MatrixCurvature(H, torch.full((rows,), 1e-3))


def damage(weight, plane, known):
    """½ tr(G E H Eᵀ)."""
    E = torch.from_numpy(plane.reconstruct()) - weight
    return float(((E @ known.H) * E).sum(dim=1) @ known.G) / 2


def entropy(codes):
    _, counts = np.unique(codes, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


@pytest.mark.parametrize("method", published.METHODS, ids=lambda method: method.name)
def test_a_larger_step_takes_fewer_bits_and_harms_more(method):
    weight, known = problem()
    planes = [method.quantize(weight, known, Settings(step=step)) for step in (0.25, 1.0)]
    assert entropy(planes[0].codes) > entropy(planes[1].codes) + 0.5
    assert damage(weight, planes[0], known) < damage(weight, planes[1], known)


def test_cerwu_beats_plain_rounding_on_its_grid_in_bits_and_harm():
    weight, known = problem()
    plane = published.cerwu(weight, known, Settings(step=0.5))
    step = float(plane.row_scale.values()[0])
    plain = replace(plane, codes=(weight / step).round().int().numpy())
    assert len(set(plane.row_scale.index.tolist())) == 1
    assert plane.col_scale is None
    assert entropy(plane.codes) < entropy(plain.codes)
    assert damage(weight, plane, known) < 0.8 * damage(weight, plain, known)


def test_watersics_columns_have_steps_of_their_own_and_rows_none():
    weight, known = problem()
    plane = published.watersic(weight, known, Settings())
    columns = plane.col_scale.values()
    assert plane.trellis == 0
    assert np.ptp(np.log2(plane.row_scale.values())) < 0.2
    assert columns.max() > 1.5 * columns.min()


def test_entquants_scales_are_the_cheapest_near():
    weight, _ = problem()
    weight = weight * torch.logspace(-1, 0, len(weight))[:, None]
    settings = Settings(step=0.5)
    steps = published.entquant(weight, None, settings).row_scale.values()

    def cost(steps):
        codes = (weight / torch.from_numpy(steps)[:, None]).round()
        lost = (weight - codes * torch.from_numpy(steps)[:, None]).square().mean() / weight.square().mean()
        return float(lost + published.PRICE * settings.step**3 * codes.abs().mean())

    assert cost(steps) < min(cost(steps * np.float32(0.8)), cost(steps * np.float32(1.25)))
    assert steps[-1] > 1.5 * steps[0]  # ten times as wide
    assert steps[-1] < 3 * steps[0]


TENSORS = {
    "bank": torch.arange(3 * 64 * 128.0).reshape(3, 64, 128),
    "gains": torch.ones(6, 2, 64),
    "turned": torch.arange(64 * 192.0).reshape(192, 64),
    "bias": torch.ones(5, dtype=torch.bfloat16),
}


class TestModelsAsMatrices:
    def test_banks_come_slice_by_slice_and_all_comes_back(self):
        parts = rival_quantizers.apart(TENSORS, {"turned"})
        assert {name: tuple(part.shape) for name, part in parts.items()} == {
            "bank.0": (64, 128), "bank.1": (64, 128), "bank.2": (64, 128),
            "gains": (768,), "turned": (64, 192), "bias": (5,),
        }  # fmt: skip
        back = rival_quantizers.together(parts, TENSORS, {"turned"})
        assert all(torch.equal(back[name], tensor.float()) for name, tensor in TENSORS.items())

    def test_every_byte_of_a_file_is_counted(self):
        parts = rival_quantizers.apart(TENSORS, {"turned"})
        matrices, rest, weights = rival_quantizers.quantized(
            parts, rival_quantizers.of_gguf("Q8_0"), torch.float16, {"bank.1": self.coded(parts["bank.1"])}
        )
        assert len(rest) == 2 * (768 + 5)
        assert sum(len(each.packed) for each in matrices) == (2 * 64 * 128 + 64 * 192) // 32 * 34 + 7
        assert weights.keys() == parts.keys()

    @staticmethod
    def coded(weight):
        return rival_quantizers.Coded(b"7 bytes", b"", b"", weight)

    def test_rows_that_no_groups_fill_are_refused(self):
        with pytest.raises(SystemExit, match="odd has rows of 80 weights"):
            rival_quantizers.apart({"odd": torch.ones(64, 80)})
