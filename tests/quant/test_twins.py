"""The same weights in other words: whatever computes a product, its curvature is that of the product written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pgolf
from pgolf.loading import dense
from pgolf.packer.format import artifact
from pgolf.quant.curvature.store import Curvature
from tests.helpers import generator

VOCAB, DIM, HEADS = 48, 32, 4
IDS = torch.randint(0, VOCAB, (12, 24), generator=generator(0))


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu(1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class Stock(nn.Module):
    """Embedding, one layer of some kind, head."""

    def __init__(self, layer: Callable[[], nn.Module], how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCAB, DIM)
        self.layer = layer()
        self.how = how
        g = generator(1)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=g) * 0.3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return F.linear(torch.tanh(x + self.how(self.layer, x)), self.table.weight)


def mha(layer: nn.MultiheadAttention, x: Tensor, **options: object) -> Tensor:
    return layer(x, x, x, attn_mask=causal(x.shape[1]), **options)[0]


def plain_mha(layer: nn.MultiheadAttention, x: Tensor) -> Tensor:
    biases = layer.in_proj_bias.chunk(3)
    q, k, v = (F.linear(x, w, b) for w, b in zip(layer.in_proj_weight.chunk(3), biases, strict=True))
    return F.linear(attend(q, k, v), layer.out_proj.weight, layer.out_proj.bias)


def encoder(layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
    return layer(x, src_mask=causal(x.shape[1]))


def plain_encoder(layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
    x = layer.norm1(x + plain_mha(layer.self_attn, x))
    return layer.norm2(x + layer.linear2(F.relu(layer.linear1(x))))


def conv(layer: nn.Conv1d, x: Tensor) -> Tensor:
    return layer(F.pad(x.mT, (2, 0))).mT


def plain_conv(layer: nn.Conv1d, x: Tensor) -> Tensor:
    back = F.pad(x, (0, 0, 2, 0)).unfold(1, 3, 1)  # [B, T, I, 3]
    return F.linear(back.flatten(2), layer.weight.flatten(1), layer.bias)


def conv2d(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return layer(F.pad(x.mT[..., None], (0, 0, 2, 0)))[..., 0].mT


def attention() -> nn.MultiheadAttention:
    return nn.MultiheadAttention(DIM, HEADS, batch_first=True)


def encoder_layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(DIM, HEADS, 48, batch_first=True)


def convolution() -> nn.Conv1d:
    return nn.Conv1d(DIM, DIM, 3)


TWINS = {
    "attention": (attention, mha, plain_mha),
    "attention without its weights": (attention, lambda m, x: mha(m, x, need_weights=False), plain_mha),
    "encoder layer": (encoder_layer, encoder, plain_encoder),
    "convolution": (convolution, conv, plain_conv),
    "two-dimensional convolution": (lambda: nn.Conv2d(DIM, DIM, (3, 1)), conv2d, plain_conv),
}


def full(G: Tensor) -> Tensor:
    return G.diag() if G.dim() == 1 else G


@pytest.mark.parametrize("name", TWINS)
def test_stock_layers_are_the_same_products(name: str) -> None:
    layer, how, plain = TWINS[name]
    stock, twin = Stock(layer, how).eval(), Stock(layer, plain).eval()
    torch.testing.assert_close(stock(IDS), twin(IDS), rtol=1e-4, atol=1e-4)
    found, known = pgolf.calibrate(stock, IDS), pgolf.calibrate(twin, IDS)
    words = {word for name, word in found.coverage.items() if len(found.shapes[name]) > 1}
    assert words == {"traced"}
    for each in found.shapes:
        for mine, theirs in zip(found.matrices(each) or [], known.matrices(each) or [], strict=True):
            torch.testing.assert_close(mine.H, theirs.H, rtol=2e-3, atol=2e-3 * float(theirs.H.abs().max()))
            G = full(theirs.G)
            torch.testing.assert_close(full(mine.G), G, rtol=2e-3, atol=2e-3 * float(G.abs().max()))


@pytest.mark.parametrize("name", ["attention", "encoder layer"])
def test_without_gradients_there_is_no_fast_path_either(name: str) -> None:
    layer, how, _ = TWINS[name]
    found = pgolf.calibrate(Stock(layer, how).eval(), IDS, output_side=False)
    assert {word for name, word in found.coverage.items() if len(found.shapes[name]) > 1} == {"traced"}


@pytest.mark.parametrize(
    "options",
    [
        {"key_padding_mask": torch.arange(24).expand(12, -1) > 20},
        {"average_attn_weights": False},
        {"need_weights": False, "key_padding_mask": torch.zeros(12, 24)},
        {"attn_mask": torch.zeros(12 * HEADS, 24, 24)},
        {"attn_mask": torch.zeros(24, 24, dtype=torch.bool), "is_causal": False},
    ],
)
@pytest.mark.parametrize("made", [{}, {"kdim": DIM, "vdim": 2 * DIM}, {"bias": False}, {"add_zero_attn": True}])
def test_attention_written_out_is_attention(options: dict, made: dict) -> None:
    from pgolf.quant.curvature.trace import Tracer

    torch.manual_seed(0)
    layer = nn.MultiheadAttention(DIM, HEADS, batch_first=True, **made).eval()
    x = torch.randn(12, 24, DIM, generator=generator(2))
    value = torch.randn(12, 24, made.get("vdim", DIM), generator=generator(3))
    expected, weights = layer(x, x, value, **options)

    class Deaf:
        def product(self, *_: object) -> None: ...

        def lookup(self, *_: object) -> None: ...

        def unknown(self, *_: object) -> None: ...

    with Tracer(dict(layer.named_parameters()), Deaf()):
        found, again = layer(x, x, value, **options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (weights is None) == (again is None)
    if weights is not None:
        torch.testing.assert_close(again, weights, rtol=1e-4, atol=1e-5)


class Recurrent(nn.Module):
    """An LSTM and a convolution that runs backwards: neither is followed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCAB, DIM)
        self.lstm = nn.LSTM(DIM, DIM, batch_first=True)
        self.turned = nn.ConvTranspose2d(DIM, DIM, (1, 1))
        self.norm = nn.utils.parametrizations.weight_norm(nn.Linear(DIM, DIM))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.lstm(self.table(ids))[0]
        return F.linear(x + self.norm(self.turned(x.mT[..., None])[..., 0].mT), self.table.weight)


def test_what_is_not_followed_has_a_price_of_its_gradients() -> None:
    found = pgolf.calibrate(Recurrent(), IDS)
    assert found.coverage["turned.weight"] == "untraced"
    for name, shape in found.shapes.items():
        known = found.matrices(name)
        assert known is not None, name
        assert sum(float(m.H.trace() * full(m.G).trace()) for m in known) > 0, name
        assert len(shape) < 2 or sum(found.squares[name]) > 0


def kl_of(model: nn.Module, curvature: Curvature, budget: int) -> float:
    held = torch.randint(0, VOCAB, (32, 24), generator=generator(5))
    with torch.no_grad():
        before = model(held).log_softmax(-1)
        report = pgolf.pack(model, None, budget=budget, curvature=curvature)
        model.load_state_dict(dense.tensors_of(artifact.decode(report.data)[0]))
        after = model(held).log_softmax(-1)
    assert report.artifact_bytes > 0.95 * budget
    return float((before.exp() * (before - after)).sum(-1).mean())


@pytest.mark.parametrize("name", ["encoder layer", "convolution"])
def test_stock_layers_lose_no_more_than_plain_products(name: str) -> None:
    layer, how, plain = TWINS[name]
    models = [Stock(layer, way).eval() for way in (how, plain)]
    stock, twin = (kl_of(model, pgolf.calibrate(model, IDS), 5000) for model in models)
    assert stock < 1.05 * twin


def test_convolutions_and_vectors_are_kept_in_files(tmp_path) -> None:
    layer, how, _ = TWINS["convolution"]
    found = pgolf.calibrate(Stock(layer, how).eval(), IDS)
    found.save(tmp_path / "c")
    again = Curvature.load(tmp_path / "c")
    for name in found.shapes:
        for mine, theirs in zip(found.matrices(name) or [], again.matrices(name) or [], strict=True):
            assert torch.equal(mine.H, theirs.H)
    merged = found.merge([again])
    torch.testing.assert_close(merged.matrices("layer.weight")[0].H, found.matrices("layer.weight")[0].H)


def test_a_long_convolution_is_a_bank_with_the_same_price() -> None:
    layer = nn.Conv1d(DIM, DIM, 96)
    found = pgolf.calibrate(Stock(lambda: layer, lambda m, x: m(F.pad(x.mT, (95, 0))).mT).eval(), IDS)
    (whole,), bank = found.get("layer.weight"), found.matrices("layer.weight")
    assert (whole.H.shape[0], len(bank), bank[0].H.shape, bank[0].G.shape) == (DIM * 96, DIM, (96, 96), (DIM, DIM))
    mine = sum(float(m.H.trace() * m.G.trace()) for m in bank)
    assert mine == pytest.approx(float(whole.H.trace() * full(whole.G).trace()), rel=1e-3)
