"""--device: asked for before anything is read, and carried to the model and its curvature."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import pgolf
from pgolf.cli import main
from pgolf.quant.curvature.loss import loss_rise
from pgolf.quant.curvature.store import Curvature, MatrixCurvature

COMMANDS = {
    "pack": ["nowhere.pt", "--budget", "1MB"],
    "calibrate": ["nowhere.pt", "-o", "OUT"],
    "estimate": ["nowhere.pt"],
    "sweep": ["nowhere.pt", "--data", "nowhere.bin", "-o", "OUT"],
    "demo": ["-o", "OUT"],
    "eval": ["nowhere.pt", "--data", "nowhere.bin"],
    "train": ["-o", "OUT"],
    "bench": ["-o", "OUT"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("device", ["cuda", "cuda:99", "gpu"])
def test_a_device_that_is_not_here(command: str, device: str, tmp_path: Path) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    arguments = [word.replace("OUT", str(tmp_path / "out")) for word in COMMANDS[command]]
    result = CliRunner().invoke(main, [command, *arguments, "--device", device], catch_exceptions=False)
    assert result.exit_code == 3
    assert device in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


class Small(nn.Module):
    """Two products and a lookup."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.inner = nn.Embedding(32, 16), nn.Linear(16, 16, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.linear(self.inner(self.table(ids)).relu(), self.table.weight)


TOKENS = torch.randint(32, (16, 64), generator=torch.Generator().manual_seed(0))


def test_sums_stay_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(tensor: Tensor) -> Tensor:
        raise AssertionError("a sum is copied to the CPU")

    monkeypatch.setattr(Tensor, "cpu", copied)
    assert pgolf.calibrate(Small(), TOKENS).tokens == TOKENS.numel()


def test_errors_are_priced_where_the_curvature_is(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    to = Tensor.to
    monkeypatch.setattr(Tensor, "to", lambda t, *args, **kwargs: places.append(args) or to(t, *args, **kwargs))
    assert loss_rise(torch.ones(2, 3), MatrixCurvature(torch.eye(3))) == 3.0
    assert (torch.device("cpu"),) in places


def test_the_device_reaches_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from pgolf.commands import models
    from pgolf.commands.shared import CalibrationOptions, ModelOptions
    from pgolf.common.progress import silent
    from pgolf.models.checkpoint import from_mapping

    met: list[torch.device] = []

    def stop(model: nn.Module, *args: object, **how: object) -> None:
        met.append(next(model.parameters()).device)
        raise KeyboardInterrupt

    model = Small()
    monkeypatch.setattr(models, "build", lambda *args: model)
    monkeypatch.setattr(models, "_invented", stop)
    options = CalibrationOptions(("self",), 64, 0, device="meta")  # stands for a GPU
    with pytest.raises(KeyboardInterrupt):
        models.calibrate_model(
            from_mapping(Small().state_dict()), Path("ckpt.pt"), ModelOptions(None, None), options, silent
        )
    assert met == [torch.device("meta")]


@pytest.mark.gpu
def test_packed_by_curvature_on_a_gpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = Small().cuda()
    found = pgolf.calibrate(model, TOKENS)
    assert {sums.cols.device.type for sums in found.sums.values() if sums.cols is not None} == {"cuda"}
    there = pgolf.pack(model, None, budget=1000, curvature=found)
    found.save(tmp_path / "c.safetensors")
    here = pgolf.pack(Small(), None, budget=1000, curvature=Curvature.load(tmp_path / "c.safetensors"))
    assert there.loss_rise == pytest.approx(here.loss_rise, rel=0.05)
    again = Curvature.load(tmp_path / "c.safetensors", "cuda")
    assert pgolf.pack(model, None, budget=1000, curvature=again).loss_rise == pytest.approx(there.loss_rise, rel=0.05)
