"""Weights and curvature that no trainer should make: what comes back is finite, of the same shape and dtype, and near."""

import re

import pytest
import torch

from pgolf.errors import CurvatureError
from pgolf.fitting import packing
from pgolf.loading import dense
from pgolf.packer.format import artifact
from pgolf.quant import METHODS
from pgolf.quant.curvature.factor import cholesky, watched
from pgolf.quant.curvature.store import Curvature, Key, Sums
from pgolf.quant.settings import Settings
from tests.helpers import generator

W = torch.randn(64, 72, generator=generator())
ROWS = torch.logspace(-30, 30, 64)[:, None]


def with_dull_rows():
    weight = W.clone()
    weight[3], weight[5], weight[7] = 0.7, 0.0, -1e-30
    return weight


def with_one_giant():
    weight = W.clone()
    weight[2, 3] = 1e20
    return weight


WEIGHTS = {
    "tiny": W * 1e-30,
    "denormal": W * 1e-40,
    "denormal halves": (W * 1e-6).half(),
    "huge": W * 1e30,
    "rows of all sizes": W * ROWS,
    "columns of all sizes": W * torch.logspace(-20, 20, 72),
    "constant rows": with_dull_rows(),
    "zeros": torch.zeros(64, 72),
    "one giant": with_one_giant(),
    "float16": W.half(),
    "bfloat16": W.bfloat16(),
    "float64": W.double(),
    "float8": W.to(torch.float8_e4m3fn),
    "one row": W.reshape(1, -1),
    "one column": W.reshape(-1, 1),
    "ten thousand inputs": torch.randn(8, 10_000, generator=generator(1)),
    "ten thousand outputs": torch.randn(10_000, 8, generator=generator(2)),
    "float64 beyond float32": W.double() * 1e200,
}


def packed(weight, method, curvature=None):
    report = packing.pack({"w": weight}, None, method=method, curvature=curvature)
    return dense.tensors_of(artifact.decode(report.data)[0])["w"]


def distance(found, weight):
    """Relative error; in units that float64 holds the squares of."""
    unit = float(weight.double().abs().max()) or 1.0
    return float(((found.double() - weight.double()) / unit).norm() / ((weight.double() / unit).norm() or 1.0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", WEIGHTS)
def test_odd_weights(name, method):
    weight = WEIGHTS[name]
    found = packed(weight, method)
    assert (found.dtype, found.shape) == (weight.dtype, weight.shape)
    assert torch.isfinite(found.double()).all()
    blind = name == "denormal"  # scales end before it: zeros, and a note in the report
    blind |= (
        method == "hessian-sdclip" and name == "rows of all sizes"
    )  # its clip follows |w|: half precision ends first
    assert distance(found, weight) <= (1.0 if blind else 0.3)


def factors(kind):
    """H [72, 72] and G [64, 64] of an honest calibration, then spoilt."""
    x, g = torch.randn(144, 72, generator=generator(3)), torch.randn(128, 64, generator=generator(4))
    H, G = x.T @ x / 144, g.T @ g / 128
    match kind:
        case "singular":
            H, G = torch.outer(x[0], x[0]), torch.outer(g[0], g[0])
        case "dead":
            H[:24], H[:, :24], G[:1], G[:, :1] = 0, 0, 0, 0
        case "zero":
            H, G = H * 0, G * 0
        case "minute":
            H, G = H * 1e-30, G * 1e-30
        case "vast":
            H, G = H * 1e25, G * 1e25
        case "indefinite":
            H[0, 0], G[1, 1] = -H[0, 0], -G[1, 1]
        case "NaN":
            H[0, 0] = float("nan")
        case "infinite":
            G[0, 0] = float("inf")
    found = Curvature(tokens=1, shapes={"w": (64, 72)}, used={"w": {(0, 0, 64, 1, 0, 72, 1)}})
    found.sums[Key("w", 0, "linear")] = Sums(rows=G, cols=H, uses=1.0)
    return found


@pytest.mark.parametrize("method", ["auto", "gptq"])
def test_damping_grows_by_itself_and_is_reported(method):
    """An indefinite H has no factor until more than its most negative eigenvalue is added."""
    broken, packs = factors("honest"), []
    sums = broken.sums[Key("w", 0, "linear")]
    sums.cols[0, 1] = sums.cols[1, 0] = 3 * sums.cols.diagonal().max()
    for _ in range(2):
        packs.append(packing.pack({"w": W}, None, method=method, curvature=broken, settings=Settings(step=0.5)))
    note = r"damping was raised where the curvature is not positive definite: w \(by 1e\+0[01] of its mean\)"
    assert re.search(note, " ".join(packs[0].notes))
    assert packs[0].data == packs[1].data
    assert torch.isfinite(dense.tensors_of(artifact.decode(packs[0].data)[0])["w"]).all()
    honest = packing.pack({"w": W}, None, method=method, curvature=factors("honest"), settings=Settings(step=0.5))
    assert not any("damping" in note for note in honest.notes)


def test_a_factor_is_that_of_the_raised_matrix():
    A = torch.tensor([[1.0, 3.0], [3.0, 1.0]], dtype=torch.float64)  # eigenvalues -2 and 4
    with watched() as shares:
        L = cholesky(A)
        cholesky(torch.eye(3, dtype=torch.float64))
    assert shares == [pytest.approx(10.0)]  # the first power of ten beyond 2
    torch.testing.assert_close(L @ L.T, A + 10 * torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("method", ["auto", "quick", "gptq", "hessian-sdclip"])
@pytest.mark.parametrize("kind", ["singular", "dead", "zero", "minute", "vast", "indefinite", "NaN", "infinite"])
def test_odd_curvature(kind, method):
    if kind in {"NaN", "infinite"}:
        with pytest.raises(CurvatureError, match="'w' has NaN or infinite"):
            packed(W, method, factors(kind))
        return
    found = packed(W, method, factors(kind))
    assert torch.isfinite(found).all()
    if kind not in {"minute", "vast"}:  # there the steps rightly follow
        assert distance(found, W) < 1.5
