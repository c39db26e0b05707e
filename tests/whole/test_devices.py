"""What runs on a GPU, on one that is not there: an operand left on the CPU is an error, and waits of the host are counted."""

import numpy as np
import pytest
import torch
from torch import nn

import pgolf
from pgolf.data.shards import WindowSampler
from pgolf.errors import UsageError
from pgolf.kernels import launch as door
from pgolf.kernels.weight import PackedWeight
from pgolf.loading import hf_folder, transformers_quantizer
from pgolf.loading.modules import load_module
from pgolf.models.logits import logits_of
from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import Entry
from pgolf.packer.plane import Plane, Scale
from pgolf.quant.curvature.selftext import self_generate
from pgolf.quant.rounding import diagonals
from pgolf.quant.rounding.feedback import round_matrix
from pgolf.scoring import bpb
from pgolf.scoring.reading import Reading
from pgolf.scoring.static import StaticLosses, to_device
from pgolf.scoring.ttt import TTTSettings
from pgolf.train.loop.trainer import Trainer, TrainSettings
from pgolf.train.model.gpt import GPT, GPTConfig
from pgolf.train.qat.hooks import QAT, WATCHED
from tests.elsewhere import There, gpu
from tests.helpers import toy_module, toy_state
from tests.kernels.places import HAS_GPU, needs_triton

pytestmark = pytest.mark.skipif(HAS_GPU, reason="a GPU is there: it shows the same by itself")
TINY = GPTConfig(vocab_size=64, layers=1, dim=64, heads=2, kv_heads=1, mlp_mult=2, rope_dims=4)
TOKENS = np.random.default_rng(0).integers(0, 64, 150).astype(np.uint16)


def test_the_stand_in_refuses_what_a_gpu_refuses():
    with gpu() as there:
        layer = nn.Linear(4, 3).to("cuda")
        assert layer.weight.device == torch.device("cuda:0")
        with pytest.raises(RuntimeError, match="same device"):
            layer(torch.zeros(2, 4))
        y = layer(torch.zeros(2, 4, device="cuda")).square().mean()
        with pytest.raises(TypeError, match="numpy"):
            y.detach().numpy()
        y.backward()
        assert layer.weight.grad.is_cuda
        assert not there.waits
        assert isinstance(y.detach().cpu(), torch.Tensor)
        assert not isinstance(y.detach().cpu(), There)
        assert y.item() > 0
        assert there.waits == {"cpu": 2, "_local_scalar_dense": 1}


@needs_triton
@pytest.mark.filterwarnings("ignore")
def test_from_pretrained_keeps_weights_packed_where_the_model_was_put(tmp_path, caplog):
    """What transformers calls once device_map has put the model there."""
    transformers = pytest.importorskip("transformers")
    transformers_quantizer.register()
    small = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**small, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "source")
    pgolf.pack(tmp_path / "source", tmp_path / "m.pgolf", method="rtn", rules=["*proj*=int5", "*embed*=int5"])
    hf_folder.write(tmp_path / "out", tmp_path / "m.pgolf", tmp_path / "source", packed=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert "weights are dense" in caplog.text  # on a processor
    with gpu():
        model.to("cuda")
        model.hf_quantizer._process_model_after_weight_loading(model)
        packed = {name for name, parameter in model.named_parameters() if isinstance(parameter, PackedWeight)}
        assert packed == {name for name, parameter in model.named_parameters() if "norm" not in name} - {
            "lm_head.weight"
        }
        assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    codes = rng.integers(-5, 6, (6, 7)).astype(np.int32)
    codes[0, 0] = 300_000  # an escape
    scales = Scale(np.arange(6, dtype=np.int32), 8), Scale(np.arange(7, dtype=np.int32), 4)
    entries = {
        "weight": Entry("float32", (6, 7), (Plane(codes, *scales),)),
        "bias": Entry("float32", (6,), raw=np.ones(6, np.float32).tobytes()),
    }
    artifact.write(tmp_path / "a.pgolf", artifact.encode(entries).data)
    return tmp_path / "a.pgolf"


@needs_triton
def test_loading(path):
    host = pgolf.load(path)
    with gpu():
        state = pgolf.load(path, device="cuda")
        assert all(isinstance(tensor, There) for tensor in state.values())
        assert all(torch.equal(tensor.held, host[name]) for name, tensor in state.items())
        layer = nn.Linear(7, 6)
        load_module(path, layer, device="cuda")
        assert layer(torch.ones(1, 7, device="cuda")).is_cuda


@needs_triton
@pytest.mark.parametrize("packed", [False, True])
def test_loading_waits_as_often_for_many_matrices_as_for_one(tmp_path, packed):
    waits = []
    for count in (1, 3):
        rng = np.random.default_rng(count)
        planes = [
            Plane(rng.integers(-5, 6, (6, 7)).astype(np.int32), Scale(np.arange(6, dtype=np.int32), 8))
            for _ in range(count)
        ]
        for plane in planes[:-1]:
            plane.codes[1, 1] = 40_000  # an escape
        entries = {f"{i}.weight": Entry("float32", (6, 7), (plane,)) for i, plane in enumerate(planes)}
        artifact.write(tmp_path / "a.pgolf", artifact.encode(entries).data)
        module = nn.Sequential(*(nn.Linear(7, 6, bias=False) for _ in range(count)))
        with gpu() as there:
            load_module(tmp_path / "a.pgolf", module, packed=packed, device="cuda")
            waits.append(sum(there.waits.values()))
        assert isinstance(module[-1].weight, PackedWeight) == packed
    assert waits[0] == waits[1] <= 5


def scores(device, how):
    model = to_device(GPT(TINY), torch.device(device))
    model.compute_dtype = torch.float32
    if how == "ttt":
        return Reading(16, ttt=TTTSettings(rank=2, chunk=8)).score(model, TOKENS[:60], int(TOKENS[20]))
    fast = StaticLosses(model, logits_of(model), seq_len=16, batch_size=4, compile=False) if how == "fast" else None
    return bpb.score_windows(logits_of(model), TOKENS, seq_len=16, batch_size=4, losses=fast)


@needs_triton
@pytest.mark.parametrize("how", ["plain", "fast", "ttt"])
def test_scoring(how):
    with gpu():
        mine = scores("cuda", how)
    np.testing.assert_allclose(mine, scores("cpu", how), atol=2e-5)


def test_whole_batches_wait_only_for_their_losses(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    with gpu() as there:
        model = toy_module(toy_state()).to("cuda")
        fast = StaticLosses(model, logits_of(model), seq_len=16, batch_size=4)
        batch = torch.from_numpy(TOKENS[:68].astype(np.int64)).view(4, 17).to("cuda")
        fast(batch, 0)
        there.waits.clear()
        with torch.no_grad():
            fast(batch, 0)
        assert not there.waits


def on_the_cpu(asked, device):
    """The kernel's interpreter would take minutes; `test_round_block` holds it to these codes."""
    assert device == torch.device("cuda:0")
    return np.stack([round_matrix(*one) for one in asked])


def test_calibrating_and_packing(tmp_path, monkeypatch):
    monkeypatch.setattr(diagonals, "round_together", on_the_cpu)
    batch = torch.from_numpy(TOKENS[:128].astype(np.int64)).view(4, 32)
    sizes, sums = [], []
    for device in ("cpu", "cuda"):
        with gpu():
            model = toy_module(toy_state()).to(device)
            curvature = pgolf.calibrate(model, [batch])
            sums.append(curvature.matrices("up.weight")[0].H.cpu())
            sizes.append(pgolf.pack(model, tmp_path / device, curvature=curvature, budget=7000).artifact_bytes)
    torch.testing.assert_close(*sums)
    assert abs(sizes[0] - sizes[1]) < 70


def test_text_of_the_models_own():
    with gpu():
        text = self_generate(toy_module(toy_state()).to("cuda"), sequences=2, length=8)
    assert text.shape == (2, 8)


@pytest.mark.parametrize("grid", ["int6", "gptq,int4", "rtn,int5", "hessian-sdclip,int6"])
@pytest.mark.parametrize("rounding", ["ste", "soft"])
def test_an_update_of_qat_waits_for_nothing(grid, rounding):
    seen = []
    for device in ("cpu", "cuda"):
        with gpu() as there:
            model = toy_module(toy_state()).to(device)
            qat = QAT(model, grid, start=0.0, rounding=rounding)
            qat.updates = WATCHED + 1
            there.waits.clear()
            qat.step(0.5)
            weights = [getattr(p, "held", p).detach().clone() for p in model.parameters()]
            qat.restore()
            assert not there.waits, "the host waited in an update"
            seen.append(weights)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_a_change_that_qat_did_not_see_at_once_is_found():
    with gpu():
        model = toy_module(toy_state()).to("cuda")
        qat = QAT(model, "int6", start=0.0)
        qat.updates = WATCHED + 1
        qat.step(0.5)
        with torch.no_grad():
            model.up.weight.mul_(1.5)
        qat.restore()

        def go_on():
            for _ in range(WATCHED + 1):
                qat.step(0.5)
                qat.restore()

        with pytest.raises(UsageError, match="weights changed"):
            go_on()


def test_training():
    with gpu():
        model = GPT(TINY).to("cuda")
        qat = QAT(model, "int6", start=0.0)
        trainer = Trainer(model, WindowSampler([TOKENS], 16, 2, 0), TrainSettings(steps=2), qat=qat)
        trainer.run()
        assert trainer.step_count == 2
        assert all(isinstance(p, There) for p in model.parameters())


class Kernel:
    """Says what it was launched with, and where."""

    def __init__(self):
        self.seen = None

    def __getitem__(self, grid):
        return lambda *arguments, **options: setattr(self, "seen", (grid, arguments, options))


def test_a_launch_is_on_the_device_of_its_operands(monkeypatch):
    entered = []

    class Guard:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *_):
            entered.append("left")

    monkeypatch.setattr(torch.cuda, "device", Guard)
    kernel = Kernel()
    door.launch(kernel, (2,), There(torch.zeros(3)), None, 5, BLOCK=8)
    assert entered == [torch.device("cuda:0"), "left"]
    assert kernel.seen[0] == (2,)
    door.launch(kernel, (2,), torch.zeros(3))
    assert len(entered) == 2
    with pytest.raises(ValueError, match="lie on cpu, cuda:0: move them together"):
        door.launch(kernel, (2,), There(torch.zeros(3)), torch.zeros(3))
