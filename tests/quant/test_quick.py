import numpy as np
import pytest
import torch

from pgolf.quant import METHODS, Settings
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.methods import quick
from tests.helpers import generator


def curvature(rows=96, cols=64):
    g = generator(1)
    x = torch.randn(500, cols, generator=g) * torch.rand(cols, generator=g) ** 2
    return MatrixCurvature(x.T @ x / 500, 0.1 + torch.rand(rows, generator=g))


def test_steps_are_the_inverse_roots_of_the_diagonals():
    known, settings = curvature(), Settings(damp_inputs=0, damp_outputs=0)
    steps = quick.prepare(torch.randn(96, 64, generator=generator()), known, settings)
    g, h = (v.double().numpy() for v in (known.G, known.H.diagonal()))
    wanted = np.outer(g + quick.LEAST_SHARE * g.mean(), h + quick.LEAST_SHARE * h.mean())
    assert steps.rows[:, None] * steps.cols * np.sqrt(wanted) == pytest.approx(np.full((96, 64), 2.0**-12))
    assert np.log(steps.rows).mean() == pytest.approx(0, abs=1e-9)


def test_codes_are_the_nearest():
    weight = torch.randn(96, 64, generator=generator())
    plane = quick.quantize(weight, None, Settings())
    step = np.outer(plane.row_scale.values(), plane.col_scale.values())
    assert np.abs(plane.reconstruct() - weight.numpy()).max() <= 0.5001 * step.max()
    assert np.array_equal(plane.codes, np.rint(weight.numpy() / step))


@pytest.mark.parametrize("known", [None, curvature()])
@pytest.mark.parametrize("step", [0.25, 1.0, 4.0])
def test_expected_bits_are_near_the_entropy_of_the_codes(known, step):
    """Tolerance: 6,144 codes; their histogram alone misses spread classes."""
    g = generator(5)
    weight = 0.05 * torch.randn(96, 64, generator=g) * torch.exp(0.5 * torch.randn(96, 1, generator=g))
    settings = Settings(step=step * (1 if known is None else 8))
    prepared = quick.prepare(weight, known, settings)
    codes = quick.finish(weight, prepared, settings).codes
    counts = np.unique(codes, return_counts=True)[1]
    entropy = float((counts * np.log2(codes.size / counts)).sum())
    assert quick.expected_bits(weight, prepared, settings) == pytest.approx(entropy, rel=0.25, abs=600)


def test_dead_inputs_and_zero_weights_stay_finite():
    known = MatrixCurvature(torch.zeros(64, 64), torch.zeros(96))
    for weight in (torch.zeros(96, 64), torch.full((96, 64), 1e30)):
        plane = quick.quantize(weight, known, Settings())
        assert np.isfinite(plane.reconstruct()).all()
    assert METHODS["quick"].needs_curvature
