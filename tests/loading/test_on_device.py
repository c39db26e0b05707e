"""An artifact loads on a device as on the host, and packed modules compute what dense ones do."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pgolf
from pgolf.errors import ArtifactError, DeviceError, ModelError
from pgolf.kernels.device import need
from pgolf.kernels.weight import PackedWeight
from pgolf.loading import dense, modules, on_device
from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import Entry
from pgolf.packer.plane import Plane, Scale
from tests.helpers import generator, toy_module, toy_state
from tests.kernels.places import on_gpu
from tests.packer.test_stream import walked

PLACES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])


def planes(bank):
    rng = np.random.default_rng(0)
    scale = Scale(rng.integers(-40, 0, 1100).astype(np.int32), 8)
    wide = np.rint(rng.normal(0, 90, (1100, 3))).astype(np.int32)
    wide[5, 1] = 300_000  # an escape
    codes, layout = walked(30, 4, 8)
    trellis = Plane(codes, None, None, layout.trellis, layout.trellis_from, layout.spread)
    small = [Plane(rng.integers(-5, 6, (6, 7)).astype(np.int32), None, Scale(np.arange(7), 4)) for _ in range(bank)]
    return wide, scale, trellis, small


@pytest.fixture(params=["rans", "brotli"])
def path(request, tmp_path):
    wide, scale, trellis, small = planes(3)
    entries = {
        "wide": Entry("float32", (1100, 3), (Plane(wide, scale),)),
        "trellis": Entry("bfloat16", (30, 4), (trellis,)),
        "bank": Entry("float16", (3, 6, 7), tuple(small)),
        "double": Entry("float64", (6, 7), (small[0],)),
        "integers": Entry("int32", (1, 2), (Plane(np.int32([[(1 << 24) + 1, -3]])),)),  # float32 would round them
        "kept": Entry("float32", (2,), raw=np.float32([1, 2]).tobytes()),
        "tied": Entry("float32", (1100, 3), alias="wide"),
        "empty": Entry("float32", (0, 4), (Plane(np.zeros((0, 4), np.int32)),)),
    }
    artifact.write(tmp_path / "a.pgolf", artifact.encode(entries, coder=request.param).data)
    return tmp_path / "a.pgolf"


def by_torch(path, device):
    return dense.load_by(path, on_device.OnDevice(need(device)))


@PLACES
def test_the_same_bits_as_on_the_host(path, device):
    host, there = pgolf.load(path), by_torch(path, device)
    assert host.keys() == there.keys()
    for name, tensor in host.items():
        assert there[name].dtype == tensor.dtype
        assert there[name].shape == tensor.shape
        assert torch.equal(there[name].cpu(), tensor), name
    assert there["tied"] is there["wide"]


def test_a_wrong_checksum_is_found_on_the_device(path, monkeypatch):
    monkeypatch.setattr(on_device.OnDevice, "checksum", lambda *_: 1)
    with pytest.raises(ArtifactError, match="do not match their checksum"):
        by_torch(path, "cpu")


def test_the_checksum_wraps_as_the_packers():
    codes = [np.full((3, 5), -(1 << 30), np.int32), np.arange(70_000, dtype=np.int32).reshape(7, -1)]
    mine = on_device.OnDevice(torch.device("cpu")).checksum([Plane(torch.from_numpy(codes[0])), Plane(codes[1])])
    assert mine == artifact.checksum([Plane(matrix) for matrix in codes])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(path):
    for call in (
        lambda: pgolf.load(path, device="cuda"),
        lambda: pgolf.load_module(path, nn.Linear(2, 2), device="cuda:1"),
    ):
        with pytest.raises(DeviceError, match=r"cuda.* was asked for, but torch .* has no CUDA|finds no GPU") as error:
            call()
        assert error.value.exit_code == 3
    with pytest.raises(DeviceError, match="'abacus' is not a device"):
        pgolf.load(path, device="abacus")


class Banked(nn.Module):
    """Uses its weights as contest models do."""

    def __init__(self):
        super().__init__()
        g = generator(3)
        self.bank = nn.Parameter(torch.randn(2, 48, 48, generator=g))
        self.embedding = nn.Embedding(64, 48, _weight=torch.randn(64, 48, generator=g))
        self.biased = nn.Linear(48, 64)

    def forward(self, ids):
        x = self.embedding(ids).to(torch.float32)
        for i in range(2):
            x = x + F.linear(x, self.bank[i].to(x.dtype))
        return x @ self.embedding.weight.to(x.dtype).T + self.biased(x), self.bank.abs().sum()


def loaded(tmp_path, device="cpu", **options):
    model = Banked()
    pgolf.pack(model, tmp_path / "b.pgolf", method="rtn", rules=["bank=int5", "embedding.*=int8", "biased.*=int4"])
    pair = Banked(), Banked()
    modules.load_module(tmp_path / "b.pgolf", pair[0], device=device)
    return *pair, modules.load_module(tmp_path / "b.pgolf", pair[1], packed=True, device=device)


@PLACES
def test_a_packed_module_computes_what_the_dense_one_does(tmp_path, device):
    dense, packed, summary = loaded(tmp_path, device)
    assert summary.packed == {"bank": 5, "biased.weight": 4, "embedding.weight": 8}
    assert summary.dense == {"biased.bias": "not quantized"}
    assert "bank: 5 bits" in str(summary)
    assert isinstance(packed.bank, PackedWeight)
    assert isinstance(packed.bank, nn.Parameter)
    assert type(packed.biased) is modules.PackedLinear
    assert type(packed.embedding) is modules.PackedEmbedding
    assert "bits=8" in repr(packed)
    ids = torch.arange(12, device=device).view(2, 6)
    for mine, wanted in zip(packed(ids), dense(ids), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-4)


def test_torch_compile_and_gradients(tmp_path):
    dense, packed, _ = loaded(tmp_path)
    ids = torch.arange(6)[None]
    compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids)[0], dense(ids)[0], rtol=1e-5, atol=1e-4)
    x = torch.randn(3, 48, generator=generator(1), requires_grad=True)
    gradients = [torch.autograd.grad(m.biased(x).square().sum(), x)[0] for m in (dense, packed)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-4)


def test_wide_codes_stay_dense(tmp_path):
    model = toy_module(toy_state())
    codes = np.full((64, 48), 200, np.int32)
    entries = {name: Entry("float32", tuple(t.shape), raw=t.numpy().tobytes()) for name, t in toy_state().items()}
    entries["tok_emb.weight"] = Entry("float32", (64, 48), (Plane(codes),))
    artifact.write(tmp_path / "w.pgolf", artifact.encode(entries).data)
    summary = pgolf.load_module(tmp_path / "w.pgolf", model, packed=True)
    assert summary.packed == {}
    assert summary.dense["tok_emb.weight"] == "its codes take more than 8 bits"
    assert (model.tok_emb.weight == 200).all()


def test_another_model_is_refused(tmp_path):
    pgolf.pack(toy_module(toy_state()), tmp_path / "t.pgolf", method="rtn")
    with pytest.raises(ModelError, match="do not fit"):
        pgolf.load_module(tmp_path / "t.pgolf", Banked(), packed=True)


def test_integers_and_buffers_stay_what_they_are(tmp_path):
    """float32 would round the first, and a buffer is no parameter to be packed."""
    model = nn.Module()
    model.up = nn.Linear(64, 64, bias=False)
    model.register_buffer("ids", torch.randint(-900, 900, (64, 64), generator=generator()))
    model.register_buffer("large", torch.randint(2**30, 2**31 - 1, (64, 64), generator=generator()).to(torch.int32))
    model.register_buffer("cos", torch.rand(64, 64, generator=generator()))
    state = model.state_dict()
    pgolf.pack(state, tmp_path / "a.pgolf", budget=26_000)
    there = dense.load_by(tmp_path / "a.pgolf", on_device.OnDevice(torch.device("cpu")))
    for name in ("ids", "large"):
        assert torch.equal(there[name], state[name])
        assert there[name].dtype == state[name].dtype
    summary = modules.load_module(tmp_path / "a.pgolf", model, packed=True)
    assert (summary.dense["ids"], summary.dense["large"]) == ("integers", "not quantized")
    assert "cos" not in summary.packed
    assert torch.equal(model.ids, state["ids"])


def test_nothing_is_loaded_into_packed_weights(tmp_path):
    """The copy would be lost without a word."""
    pgolf.pack(toy_state(), tmp_path / "a.pgolf", budget=7_000)
    module = toy_module(toy_state(1))
    assert modules.load_module(tmp_path / "a.pgolf", module, packed=True).packed
    for again in (pgolf.load_into, modules.load_module):
        with pytest.raises(ModelError, match="is packed, which nothing can be loaded into"):
            again(tmp_path / "a.pgolf", module)


class Twins(nn.Module):
    """One parameter by two names."""

    def __init__(self, tied=True):
        super().__init__()
        self.up, self.down = nn.Linear(48, 48, bias=False), nn.Linear(48, 48, bias=False)
        if tied:
            self.down.weight = self.up.weight


def test_a_parameter_of_two_names_stays_one_matrix(tmp_path):
    own = Twins()
    pgolf.pack({"up.weight": own.up.weight.detach()}, tmp_path / "t.pgolf", method="rtn")
    module = Twins()
    modules.load_module(tmp_path / "t.pgolf", module, packed=True)
    assert type(module.down) is modules.PackedLinear
    assert torch.equal(module.down.weight.dense(), pgolf.load(tmp_path / "t.pgolf")["up.weight"])
    pgolf.pack(Twins(tied=False), tmp_path / "u.pgolf", method="rtn")
    with pytest.raises(ModelError, match="are one parameter in Twins"):
        modules.load_module(tmp_path / "u.pgolf", Twins(), packed=True)


def test_what_is_packed_is_never_dense(tmp_path, monkeypatch):
    """Neither in a state dict nor in the module on its device, so that the peak lies below that of dense loading."""
    pgolf.pack(Banked(), tmp_path / "b.pgolf", method="rtn")
    made, moved, module = [], [], Banked()
    tensors_of, to = dense.tensors_of, module.to

    def noted(place):
        moved.extend(name for name, _ in module.named_parameters())
        return to(place)

    monkeypatch.setattr(dense, "tensors_of", lambda entries, *rest: made.extend(entries) or tensors_of(entries, *rest))
    monkeypatch.setattr(module, "to", noted)
    modules.load_module(tmp_path / "b.pgolf", module, packed=True)
    assert made == moved == ["biased.bias"]
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in Banked().named_parameters()]


def test_a_refused_module_is_left_as_it_was(tmp_path):
    pgolf.pack(toy_module(toy_state()), tmp_path / "t.pgolf", method="rtn")
    module = Banked()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ModelError, match="do not fit"):
        modules.load_module(tmp_path / "t.pgolf", module, packed=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_packed_module_is_copied_and_packed_again(tmp_path):
    _, packed, _ = loaded(tmp_path)
    copied = copy.deepcopy(packed)
    assert isinstance(copied.bank, PackedWeight)
    assert isinstance(copied.bank, nn.Parameter)
    assert copied.bank.low.data_ptr() != packed.bank.low.data_ptr()
    assert torch.equal(copied.bank.dense(), packed.bank.dense())
    twice = copy.deepcopy([packed.bank, packed.bank])
    assert twice[0] is twice[1]
    sizes = [
        pgolf.pack(module, tmp_path / "again.pgolf", method="rtn", rules=["bank=int5", "*=int8"]).artifact_bytes
        for module in (packed, copied)
    ]
    assert sizes[0] == sizes[1]
    again = pgolf.load(tmp_path / "again.pgolf")["bank"]
    torch.testing.assert_close(again, packed.bank.dense(), rtol=0.1, atol=0.2)


def test_auto_packs_where_products_gain(tmp_path, monkeypatch):
    pgolf.pack(Banked(), tmp_path / "b.pgolf", method="rtn", rules=["*=int8"])
    assert modules.load_module(tmp_path / "b.pgolf", Banked(), packed="auto").dense["bank"] == "nothing to gain on cpu"
    monkeypatch.setattr(modules, "LARGE", 48 * 64)
    entries, _ = dense.read(tmp_path / "b.pgolf")
    why = modules._why_no_faster(entries, torch.device("cuda"))
    assert {name for name, reason in why.items() if not reason} == {"embedding.weight", "biased.weight"}
    assert why["bank"] == "too small to gain"
