"""The classic methods: rtn, sdclip, hessian-sdclip, gptq-lite, gptq."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pgolf.packer.plane import HALF, Plane
from pgolf.quant import METHODS, MatrixCurvature, Settings
from pgolf.quant.curvature.factor import ascending, damped, inverse_upper
from pgolf.quant.methods.gptq import column_order
from pgolf.quant.methods.rows import row_scale
from pgolf.quant.methods.sdclip import hessian_sdclip_steps, sdclip_steps

CLASSIC = ("rtn", "sdclip", "hessian-sdclip", "gptq-lite", "gptq")
INT4 = Settings(bits=4, scale_per_octave=64)


def random_weight(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def random_curvature(cols: int, seed: int = 1, samples: int = 0) -> MatrixCurvature:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples or 4 * cols, cols, generator=generator) * torch.linspace(0.1, 3, cols)
    x = x + x.roll(1, 1)
    return MatrixCurvature(x.T @ x / len(x))


def error(weight: Tensor, plane: Plane) -> Tensor:
    return weight.double() - torch.from_numpy(plane.reconstruct()).double()


def cost(weight: Tensor, plane: Plane, H: Tensor) -> float:
    E = error(weight, plane)
    return float(torch.trace(E @ H.double() @ E.T)) / 2


def naive_gptq(weight: Tensor, H: Tensor, settings: Settings) -> np.ndarray:
    """One column at a time in float64, with the inverse of the remaining Hessian recomputed for every column."""
    H = damped(H, settings.damp)[0].numpy()
    steps = row_scale(sdclip_steps(weight, settings), settings).values().astype(np.float64)
    order = list(np.argsort(-np.diag(H), kind="stable")) if settings.act_order else list(range(len(H)))
    W, codes = weight.double().numpy().copy(), np.zeros(weight.shape, np.int32)
    while order:
        j, *rest = order
        codes[:, j] = np.clip(np.rint(W[:, j] / steps), -settings.top, settings.top)
        inverse = np.linalg.inv(H[np.ix_(order, order)])
        e = (W[:, j] - codes[:, j] * steps) / inverse[0, 0]
        W[:, rest] -= np.outer(e, inverse[0, 1:])
        order = rest
    return codes


def test_rtn_by_hand() -> None:
    weight = torch.tensor([[0.0, 3.5, -7.0, 1.2], [16.0, 112.0, -40.0, 8.1]])
    plane = METHODS["rtn"].quantize(weight, None, INT4)
    np.testing.assert_array_equal(plane.row_scale.values(), [1.0, 16.0])
    np.testing.assert_array_equal(plane.codes, [[0, 4, -7, 1], [1, 7, -2, 1]])


def test_rtn_percentile_clips_the_outlier() -> None:
    weight = torch.full((1, 101), 7.0)
    weight[0, 50] = 1000.0
    plane = METHODS["rtn"].quantize(weight, None, Settings(bits=4, percentile=0.99, scale_per_octave=HALF))
    assert plane.row_scale.values()[0] == 1.0
    assert plane.codes[0, 50] == 7


def test_sdclip_by_hand() -> None:
    weight = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    plane = METHODS["sdclip"].quantize(weight, None, Settings(bits=4, k=3.5))  # scale 3.5 · 2 / 7
    assert plane.row_scale.values()[0] == 1.0
    np.testing.assert_array_equal(plane.codes, [[2, -2, 2, -2]])


def test_sdclip_default_keeps_the_step_of_int6_on_any_grid() -> None:
    weight = random_weight(3, 64)
    for bits in (3, 5, 6, 8):
        torch.testing.assert_close(
            sdclip_steps(weight, Settings(bits=bits)), weight.double().std(dim=1, correction=0) * 12.85 / 31
        )


def test_hessian_sdclip_by_hand() -> None:
    weight = torch.tensor([[1.0, -1.0], [3.0, -3.0]])
    steps = hessian_sdclip_steps(weight, None, Settings(bits=4, k=7.0, lam=0.5))
    torch.testing.assert_close(steps, torch.tensor([0.75, 3.75], dtype=torch.float64))
    H = torch.diag(torch.tensor([1.0, 3.0]))
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    steps = hessian_sdclip_steps(weight, MatrixCurvature(H), Settings(bits=4, k=7.0, lam=0.5))
    torch.testing.assert_close(steps, torch.tensor([0.5 * 0.75, 0.5 * 1.25], dtype=torch.float64))


def test_gptq_lite_is_never_worse_than_absmax() -> None:
    weight = random_weight(8, 4000) ** 3
    settings = Settings(bits=4)
    lite, absmax = (METHODS[name].quantize(weight, None, settings) for name in ("gptq-lite", "rtn"))
    assert error(weight, lite).square().sum() < 0.8 * error(weight, absmax).square().sum()


def test_inverse_upper_is_the_factor_gptq_uses() -> None:
    H, _ = damped(random_curvature(17).H, 0.01)
    expected = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    torch.testing.assert_close(inverse_upper(H), expected)


def test_ascending_is_the_same_factor_of_the_columns_in_order() -> None:
    H = random_curvature(17).H
    before = H.clone()
    order, U, mean = ascending(H, 0.01)
    damped_H, expected_mean = damped(H, 0.01)
    assert (damped_H.diagonal()[order].diff() >= 0).all()
    assert torch.equal(U, inverse_upper(damped_H[order][:, order]))
    assert mean == expected_mean
    assert torch.equal(H, before)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("block", [1, 7, 128])
def test_gptq_equals_the_naive_oracle(block: int, act_order: bool) -> None:
    weight, curvature = random_weight(9, 24), random_curvature(24)
    settings = Settings(bits=4, block=block, act_order=act_order)
    plane = METHODS["gptq"].quantize(weight, curvature, settings)
    np.testing.assert_array_equal(plane.codes, naive_gptq(weight, curvature.H, settings))


def test_gptq_by_hand() -> None:
    """H = [[2, 1], [1, 2]]: an error e of the first column moves the second by e/2 (its regression on the first)."""
    curvature = MatrixCurvature(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    weight = torch.tensor([[1.4, -1.4]])  # std 1.4; k = 5 gives the step 1
    plane = METHODS["gptq"].quantize(weight, curvature, Settings(bits=4, k=5.0, damp=0.0))
    np.testing.assert_array_equal(plane.codes, [[1, -1]])  # -1.4 + 0.4 / 2 = -1.2
    weight = torch.tensor([[1.4, 1.4, 0.0]])
    H = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    steps = sdclip_steps(weight, Settings(bits=4, k=7.0))
    plane = METHODS["gptq"].quantize(weight, MatrixCurvature(H), Settings(bits=4, k=7.0 / float(steps), damp=0.0))
    np.testing.assert_array_equal(plane.codes, [[1, 2, 0]])  # 1.4 + 0.4 / 2 = 1.6


def test_gptq_beats_rounding_in_its_own_measure() -> None:
    weight, curvature = random_weight(32, 96), random_curvature(96)
    settings = Settings(bits=4)
    gptq, plain = (METHODS[name].quantize(weight, curvature, settings) for name in ("gptq", "sdclip"))
    assert cost(weight, gptq, curvature.H) < 0.7 * cost(weight, plain, curvature.H)


def test_gptq_without_curvature_is_sdclip() -> None:
    weight = random_weight(5, 40)
    for curvature in (None, MatrixCurvature(torch.eye(40))):
        plane = METHODS["gptq"].quantize(weight, curvature, INT4)
        np.testing.assert_array_equal(plane.codes, METHODS["sdclip"].quantize(weight, None, INT4).codes)


def test_gptq_does_not_depend_on_the_unit_of_h() -> None:
    weight, curvature = random_weight(5, 40), random_curvature(40)
    tiny = MatrixCurvature(curvature.H * 2.0**-80)
    planes = [METHODS["gptq"].quantize(weight, c, INT4) for c in (curvature, tiny)]
    np.testing.assert_array_equal(planes[0].codes, planes[1].codes)


def test_column_order_is_stable() -> None:
    H = torch.diag(torch.tensor([1.0, 3.0, 1.0, 3.0]))
    assert column_order(H, True).tolist() == [1, 3, 0, 2]
    assert column_order(H, False).tolist() == [0, 1, 2, 3]


def awkward(name: str) -> tuple[Tensor, MatrixCurvature]:
    weight, curvature = random_weight(6, 16), random_curvature(16)
    if name == "zero rows":
        weight[1:3] = 0
    elif name == "all zero":
        weight = torch.zeros_like(weight)
    elif name == "one row":
        weight = weight[:1].contiguous()
    elif name == "one column":
        weight, curvature = weight[:, :1].contiguous(), MatrixCurvature(curvature.H[:1, :1])
    elif name == "constant rows":
        weight = weight[:, :1].expand(6, 16).contiguous()
    elif name == "singular H":
        curvature = random_curvature(16, samples=3)
    elif name == "rank one, dead inputs":
        x = torch.zeros(16).index_fill_(0, torch.arange(0, 16, 2), 1.0)
        curvature = MatrixCurvature(torch.outer(x, x))
    elif name == "zero H":
        curvature = MatrixCurvature(torch.zeros(16, 16))
    elif name.endswith("weights"):
        weight = weight * float(name.split(maxsplit=1)[0])
    return weight, curvature


AWKWARD = (
    *("zero rows", "all zero", "one row", "one column", "constant rows", "singular H", "rank one, dead inputs"),
    *("zero H", "1e-30 weights", "1e30 weights"),
)


@pytest.mark.parametrize("case", AWKWARD)
@pytest.mark.parametrize("method", CLASSIC)
@pytest.mark.parametrize("per_octave", [8, HALF])
def test_awkward_matrices_stay_finite(method: str, case: str, per_octave: int) -> None:
    weight, curvature = awkward(case)
    original = weight.clone()
    for given in (curvature, None):
        settings = Settings(bits=6, damp=0.0, scale_per_octave=per_octave)
        plane = METHODS[method].quantize(weight, given, settings)
        assert plane.codes.dtype == np.int32
        assert plane.codes.shape == tuple(weight.shape)
        assert np.abs(plane.codes).max() <= 31
        assert np.isfinite(plane.reconstruct()).all()
        assert not plane.reconstruct()[(weight == 0).all(dim=1).numpy()].any()
    assert torch.equal(weight, original)


@pytest.mark.parametrize("method", CLASSIC)
@pytest.mark.parametrize("case", ["constant rows", "one column", "1e-30 weights", "1e30 weights", "singular H"])
def test_awkward_matrices_are_represented(method: str, case: str) -> None:
    weight, curvature = awkward(case)
    plane = METHODS[method].quantize(weight, curvature, Settings(bits=8))
    relative = error(weight, plane).norm() / weight.double().norm()
    assert relative < (0.7 if method == "gptq" else 0.2)  # gptq trades plain error for error under H


@pytest.mark.parametrize("method", CLASSIC)
def test_larger_steps_give_smaller_codes(method: str) -> None:
    weight, curvature = random_weight(16, 64), random_curvature(64)
    sizes = [
        np.abs(METHODS[method].quantize(weight, curvature, Settings(step=s)).codes).sum() for s in (0.5, 1.0, 2.0, 4.0)
    ]
    assert sizes == sorted(sizes, reverse=True)
