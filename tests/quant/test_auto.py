"""Method `auto`: water-filling, error feedback, levels, and what must never happen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pgolf.packer.coder.trellis import STRIP, next_states
from pgolf.packer.plane import HALF, SPREAD_STEPS, Plane
from pgolf.quant import METHODS, MatrixCurvature, Settings
from pgolf.quant.methods.auto import UNIT, curvature_frame, distortion, level_of_class, quantize_in_frame

SCALAR = Settings(trellis=0)


def random_matrix(rows: int, cols: int, seed: int = 0) -> tuple[Tensor, MatrixCurvature]:
    """Gaussian weights, correlated inputs and outputs of very different strength; about 3 bits a weight at step 1."""
    generator = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(4 * cols, cols, generator=generator)
        * torch.logspace(-1, 1, cols)[torch.randperm(cols, generator=generator)]
    )
    x = x + x.roll(1, 1)
    g = 1e-6 * torch.logspace(-2, 1, rows)[torch.randperm(rows, generator=generator)]
    return 0.5 * torch.randn(rows, cols, generator=generator), MatrixCurvature(x.T @ x / len(x), g)


def correlated(curvature: MatrixCurvature, seed: int = 2) -> MatrixCurvature:
    """The same curvature with a full G whose rows are correlated."""
    assert curvature.G is not None
    rows = len(curvature.G)
    mix = torch.eye(rows) + 0.7 * torch.randn(rows, rows, generator=torch.Generator().manual_seed(seed)) / rows**0.5
    half = curvature.G.sqrt()[:, None] * mix
    return MatrixCurvature(curvature.H, half @ half.T)


def error(weight: Tensor, plane: Plane) -> Tensor:
    return weight.double() - torch.from_numpy(plane.reconstruct()).double()


def rise(weight: Tensor, plane: Plane, curvature: MatrixCurvature) -> float:
    E = error(weight, plane)
    G = torch.ones(len(E)) if curvature.G is None else curvature.G
    G = (torch.diag(G) if G.dim() == 1 else G).double()
    return float(((G @ E @ curvature.H.double()) * E).sum()) / 2


def check_trellis(plane: Plane) -> None:
    """Walk every column as the decoder does."""
    after, width = next_states(plane.trellis), plane.spread.rows[:, None] + plane.spread.cols[None, :]
    state = np.zeros(plane.codes.shape[1], np.int32)
    for i, row in enumerate(plane.codes):
        state = np.zeros_like(state) if i % STRIP == 0 else state
        moving = width[i] >= plane.trellis_from
        assert not ((row - state)[moving] & 1).any()
        assert not (row[~moving] & 1).any()
        state = np.where(moving, after[state, (row >> 1) & 1], state)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("states", [0, 4, 8])
@pytest.mark.parametrize("shape", [(40, 96), (96, 40), (1, 70), (70, 1), (1100, 8)])
def test_codes_are_decodable_and_close(shape: tuple[int, int], states: int, full: bool) -> None:
    weight, curvature = random_matrix(*shape)
    curvature = correlated(curvature) if full else curvature
    plane = METHODS["auto"].quantize(weight, curvature, Settings(trellis=states, step=0.1))
    assert plane.codes.shape == shape
    assert plane.codes.dtype == np.int32
    assert plane.spread is not None
    if states:
        check_trellis(plane)
    assert error(weight, plane).norm() < 0.5 * weight.norm()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("states", [0, 8, 32])
def test_every_weight_costs_the_same_at_high_rate(states: int, full: bool) -> None:
    """Water-filling: the predicted rise is c²/24 a weight, whatever the curvature and the code."""
    weight, curvature = random_matrix(150, 96)
    curvature = correlated(curvature) if full else curvature
    exact = Settings(damp_inputs=0.0, damp_outputs=0.0, unbias=0.0, scale_per_octave=64)
    settings = replace(exact, trellis=states, step=0.02)
    plane = METHODS["auto"].quantize(weight, curvature, settings)
    expected = weight.numel() * (UNIT * settings.step) ** 2 / 24
    assert rise(weight, plane, curvature) == pytest.approx(expected, rel=0.08)


def test_feedback_between_rows_pays() -> None:
    weight, curvature = random_matrix(150, 96)
    curvature = correlated(curvature)
    for states in (0, 8):
        one, two = (Settings(trellis=states, step=0.3, two_sided=both, damp_outputs=0.0) for both in (False, True))
        first, second = (METHODS["auto"].quantize(weight, curvature, s) for s in (one, two))
        entropy = [float(np.log2(np.abs(p.codes) + 1).mean()) for p in (first, second)]
        cost = [rise(weight, p, curvature) for p in (first, second)]
        assert entropy[1] + math.log2(cost[1]) / 2 < entropy[0] + math.log2(cost[0]) / 2 - 0.1  # bits at equal loss


def test_two_sided_scalar_codes_equal_a_naive_oracle() -> None:
    """Row by row, column by column in float64: every code is within rounding of the target both feedbacks give."""
    weight, curvature = random_matrix(90, 80)
    curvature = correlated(curvature)
    plane = METHODS["auto"].quantize(weight, curvature, replace(SCALAR, step=0.02, scale_per_octave=64))
    frame = curvature_frame(curvature, 90, SCALAR)
    assert frame.V is not None
    U, V = frame.U.double().numpy(), frame.V.double().numpy()
    Q = plane.reconstruct()[:, frame.order].astype(np.float64)
    W = weight[:, frame.order].double().numpy()
    step = plane.row_scale.values()[:, None] * plane.col_scale.values()[frame.order][None, :]
    for i in range(90):
        target = W[i].copy()
        for j in range(80):
            assert abs(target[j] - Q[i, j]) <= 0.6 * step[i, j]
            target[j + 1 :] -= (target[j] - Q[i, j]) / U[j, j] * U[j, j + 1 :]
        W[i + 1 :] -= np.outer(V[i, i + 1 :], (W[i] - Q[i]) / V[i, i])


def test_scalar_feedback_equals_a_naive_oracle() -> None:
    weight, curvature = random_matrix(7, 150)
    plane = METHODS["auto"].quantize(weight, curvature, Settings(trellis=0, step=0.02))
    frame = curvature_frame(curvature, 7, SCALAR)
    U, W = frame.U.double().numpy(), weight[:, frame.order].double().numpy()
    decoded = plane.reconstruct()[:, frame.order].astype(np.float64)
    step = plane.row_scale.values()[:, None] * plane.col_scale.values()[frame.order][None, :]
    for j in range(150):  # the target that the code of column j was rounded from, from all earlier errors
        assert np.abs(W[:, j] - decoded[:, j]).max() <= 0.56 * step[:, j].max()
        W[:, j + 1 :] -= np.outer((W[:, j] - decoded[:, j]) / U[j, j], U[j, j + 1 :])


def test_auto_beats_gptq_at_equal_rate() -> None:
    weight, curvature = random_matrix(128, 128)

    def entropy(plane: Plane) -> float:
        counts = np.unique(plane.codes, return_counts=True)[1]
        return float(-(counts * np.log2(counts / counts.sum())).sum() / counts.sum())

    gptq = METHODS["gptq"].quantize(weight, curvature, Settings(bits=6, k=12.85))
    auto = METHODS["auto"].quantize(weight, curvature, Settings(trellis=0, step=2.5))
    assert entropy(auto) < entropy(gptq)  # although one histogram cannot see the spread classes
    assert rise(weight, auto, curvature) < 0.5 * rise(weight, gptq, curvature)


def test_larger_steps_give_smaller_codes() -> None:
    weight, curvature = random_matrix(32, 64)
    for given in (curvature, None):
        sizes = [
            np.abs(METHODS["auto"].quantize(weight, given, Settings(step=s)).codes).sum() for s in (0.2, 0.5, 1, 2, 5)
        ]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] > sizes[-1]


def test_nothing_is_clipped() -> None:
    weight, curvature = random_matrix(16, 32)
    weight[3, 5] = 5000.0
    plane = METHODS["auto"].quantize(weight, curvature, Settings(step=0.05))
    assert np.abs(plane.codes).max() > 2000
    assert error(weight, plane)[3].abs().max() < 50


def test_the_result_does_not_depend_on_the_split_of_units_between_h_and_g() -> None:
    weight, curvature = random_matrix(16, 32)
    other = MatrixCurvature(curvature.H * 1024, curvature.G / 1024)
    planes = [METHODS["auto"].quantize(weight, c, Settings()) for c in (curvature, other)]
    np.testing.assert_array_equal(planes[0].codes, planes[1].codes)


def test_full_g_is_used_by_its_diagonal_and_none_is_one() -> None:
    weight, curvature = random_matrix(16, 32)
    full = MatrixCurvature(curvature.H, torch.diag(curvature.G))
    ones, none = MatrixCurvature(curvature.H, torch.ones(16)), MatrixCurvature(curvature.H)
    for a, b in ((curvature, full), (ones, none)):
        pair = [METHODS["auto"].quantize(weight, c, Settings(damp_outputs=0.0, two_sided=False)).codes for c in (a, b)]
        np.testing.assert_array_equal(*pair)


def test_repeated_runs_give_the_same_codes() -> None:
    weight, curvature = random_matrix(50, 70)
    pair = [METHODS["auto"].quantize(weight, curvature, Settings()).codes for _ in range(2)]
    np.testing.assert_array_equal(*pair)


def test_spread_is_the_spread_of_the_codes() -> None:
    weight, curvature = random_matrix(256, 256)
    plane = METHODS["auto"].quantize(weight, curvature, Settings(step=0.05))
    width = plane.spread.rows[:, None] + plane.spread.cols[None, :]
    ratio = np.log2(np.abs(plane.codes) + 1e-9) - width / SPREAD_STEPS
    assert abs(np.median(ratio) - math.log2(0.6745)) < 0.1  # the median of |N(0, 1)|


def test_levels_go_from_least_squares_to_unbiased() -> None:
    wide, narrow = np.array([40]), np.array([2])
    for states in (0, 8):
        least, free = (Settings(trellis=states, unbias=x) for x in (0.0, 1.0))
        assert level_of_class(wide, least)[0] == pytest.approx(1)
        assert level_of_class(wide, free)[0] == pytest.approx(1, abs=1e-5)
        assert level_of_class(narrow, least)[0] < 1 < level_of_class(narrow, free)[0]
    kept = 1 - distortion(8) / 2
    settings = Settings(trellis=8)
    assert level_of_class(narrow, settings)[0] == pytest.approx(0.958 / math.sqrt(kept))


def test_least_squares_levels_have_the_least_error() -> None:
    weight = torch.randn(512, 64, generator=torch.Generator().manual_seed(3))
    for states in (0, 8):
        errors = []
        for unbias in (-0.5, 0.0, 0.5):
            settings = Settings(trellis=states, unbias=unbias, step=3.0, scale_per_octave=64)
            errors.append(float(error(weight, METHODS["auto"].quantize(weight, None, settings)).norm()))
        assert errors[1] == min(errors)


AWKWARD = (
    "zero rows",
    "zero columns",
    "all zero",
    "constant",
    "singular H",
    "zero H",
    "zero G",
    "1e-30",
    "1e30",
    "outlier",
)


def awkward(case: str) -> tuple[Tensor, MatrixCurvature]:
    weight, curvature = random_matrix(24, 40)
    H, G = curvature.H.clone(), curvature.G.clone()
    if case == "zero rows":
        weight[3:6] = 0
    elif case == "zero columns":
        weight[:, 3:6] = 0
        H[3:6] = H[:, 3:6] = 0
    elif case == "all zero":
        weight = torch.zeros_like(weight)
    elif case == "constant":
        weight = torch.full_like(weight, 0.3)
    elif case == "singular H":
        H = torch.ones_like(H)
    elif case == "zero H":
        H = torch.zeros_like(H)
    elif case == "zero G":
        G = torch.zeros_like(G)
    elif case == "outlier":
        weight[2, 2] = 1e20
    else:
        weight = weight * float(case)
    return weight, MatrixCurvature(H, G)


@pytest.mark.parametrize("case", AWKWARD)
@pytest.mark.parametrize("states", [0, 8])
@pytest.mark.parametrize("per_octave", [8, HALF])
def test_awkward_matrices_stay_finite(case: str, states: int, per_octave: int) -> None:
    weight, curvature = awkward(case)
    settings = Settings(trellis=states, damp_inputs=0.0, damp_outputs=0.0, scale_per_octave=per_octave)
    for given in (curvature, None):
        plane = METHODS["auto"].quantize(weight, given, settings)
        assert np.isfinite(plane.reconstruct()).all()
        assert np.abs(plane.codes).max() < 2**25
        if states:
            check_trellis(plane)
        if case == "all zero":
            assert not plane.codes.any()


def test_frame_can_be_shared() -> None:
    """What the budget search does: factor once, round at many steps."""
    weight, curvature = random_matrix(20, 30)
    frame = curvature_frame(curvature, 20, Settings())
    shared = quantize_in_frame(weight, frame, UNIT * 0.3, Settings())
    direct = METHODS["auto"].quantize(weight, curvature, Settings(step=0.3))
    np.testing.assert_array_equal(shared.codes, direct.codes)


@pytest.mark.gpu
def test_matrices_and_curvature_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    weight, curvature = random_matrix(96, 64)
    for known in (curvature, correlated(curvature)):
        near = METHODS["auto"].quantize(weight, known, Settings())
        far = METHODS["auto"].quantize(weight.cuda(), MatrixCurvature(known.H.cuda(), known.G.cuda()), Settings())
        assert rise(weight, far, known) == pytest.approx(rise(weight, near, known), rel=0.02)
        assert (far.codes == near.codes).mean() > 0.9  # the same but for rounding of the factors
