"""A matrix whose use is not followed is priced by its gradients: in the same unit as all others, and nearly as well."""

import pytest
import torch
from torch import Tensor, nn

import pgolf
from pgolf.loading import dense
from pgolf.packer.format import artifact
from pgolf.quant.curvature.softmax import drawn
from pgolf.quant.curvature.store import GRADIENT, Curvature, Key
from tests.helpers import generator

VOCAB, DIM, LAYERS = 96, 48, 4


class OwnProduct(torch.autograd.Function):
    """x Wᵀ as a fused or fp8 kernel does it: nothing of it is seen from outside."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.flatten(0, -2).T @ x.flatten(0, -2)


class Net(nn.Module):
    """Residual layers, of which those in `own` hide their product; gains are one parameter used elementwise."""

    def __init__(self, own: tuple[int, ...] = (), gains: bool = False) -> None:
        super().__init__()
        g = generator(1)
        self.own = own
        self.table = nn.Parameter(torch.randn(VOCAB, DIM, generator=g) * 0.5)
        self.layers = nn.ParameterList(
            nn.Parameter(torch.randn(DIM, DIM, generator=g) / DIM**0.5) for _ in range(LAYERS)
        )
        self.head = nn.Parameter(torch.randn(VOCAB, DIM, generator=g) / DIM**0.5)
        self.gains = nn.Parameter(torch.rand(LAYERS * 12, DIM, generator=g) + 0.5) if gains else None

    def forward(self, ids: Tensor) -> Tensor:
        x = nn.functional.embedding(ids, self.table)
        for i, w in enumerate(self.layers):
            h = torch.tanh(x)
            y = OwnProduct.apply(h, w) if i in self.own else nn.functional.linear(h, w)
            x = x + (y if self.gains is None else y * self.gains[12 * i])
        return nn.functional.linear(x, self.head)


def tokens(seed: int, rows: int = 48, length: int = 96) -> Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=generator(seed))


def packed(model: Net, budget: int = 7000, seed: int = 0) -> tuple[float, pgolf.Report]:
    """KL to the unpacked model on other text, and the report of the pack."""
    held = tokens(9)
    with torch.no_grad():
        before = model(held).log_softmax(-1)
    report = pgolf.pack(model, None, budget=budget, curvature=pgolf.calibrate(model, tokens(3), seed=seed))
    model.load_state_dict(dense.tensors_of(artifact.decode(report.data)[0]))
    with torch.no_grad():
        after = model(held).log_softmax(-1)
    return float((before.exp() * (before - after)).sum(-1).mean()), report


def test_the_sums_are_those_of_the_gradients():
    model, ids = Net(own=(1,)), tokens(0, 2, 8)
    found = pgolf.calibrate(model, ids, seed=5)
    logits = model(ids).flatten(0, 1)
    with torch.no_grad():
        labels = drawn(logits.softmax(-1), torch.Generator().manual_seed(5))
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(logits, labels, reduction="sum"), [model.layers[1]])
    sums = found.sums[Key("layers.1", 0, GRADIENT)]
    torch.testing.assert_close(sums.rows, slope @ slope.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sums.cols, slope.T @ slope, rtol=1e-4, atol=1e-4)
    assert [key.name for key in found.sums if key.use == GRADIENT] == ["layers.1"]


def test_traces_agree_with_the_measured_gradient():
    found = pgolf.calibrate(Net(own=(1,)), tokens(0))
    (known,) = found.get("layers.1")
    product = float(known.H.trace() * (known.G.trace() if known.G.dim() == 2 else known.G.sum()))
    assert product == pytest.approx(found.squares["layers.1"][0] / found.tokens, rel=1e-4)


@pytest.mark.parametrize("own", [(1,), (0, 1, 2, 3)])
def test_a_hidden_product_costs_little(own):
    plain, twin = packed(Net()), packed(Net(own))
    others = [packed(Net(own), seed=seed)[0] for seed in (1, 2)]  # 1.2 to 1.6 times as much with all layers hidden
    assert (twin[0] + sum(others)) / 3 < 1.5 * plain[0]
    assert twin[1].loss_rise == pytest.approx(twin[0], rel=0.35)
    bits = [{r.name: 8 * r.num_bytes / r.weights for r in report.rows} for _, report in (plain, twin)]
    assert all(abs(bits[1][name] - bits[0][name]) < 0.7 for name in bits[0])


def test_stacked_gains_are_not_crushed():
    model = Net(gains=True)
    used = [12 * i for i in range(LAYERS)]
    before = model.gains.detach()[used].clone()
    kl, report = packed(model, 8000)
    assert float((model.gains.detach()[used] - before).norm() / before.norm()) < 0.05
    assert report.loss_rise == pytest.approx(kl, rel=0.5)


def test_gradients_merge_and_are_kept(tmp_path):
    one, two = (pgolf.calibrate(Net(own=(2,)), tokens(seed, 16)) for seed in (0, 1))
    both = one.merge([two])
    key = Key("layers.2", 0, GRADIENT)
    torch.testing.assert_close(both.sums[key].rows, one.sums[key].rows + two.sums[key].rows)
    both.save(tmp_path / "c.safetensors")
    again = Curvature.load(tmp_path / "c.safetensors")
    torch.testing.assert_close(again.get("layers.2")[0].H, both.get("layers.2")[0].H)
