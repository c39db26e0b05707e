"""Commands as a user types them with --device cuda, on a GPU that is not there: whatever stays on the CPU is an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pgolf.cli import main
from pgolf.data.shards import write_shard
from pgolf.errors import CurvatureError
from pgolf.fitting.closed import tune
from pgolf.fitting.closed.repair import Repair
from pgolf.quant.rounding import diagonals
from pgolf.quant.rounding.feedback import round_matrix
from tests.elsewhere import gpu
from tests.helpers import sweep_inputs
from tests.kernels.places import HAS_GPU, needs_triton

pytestmark = [pytest.mark.skipif(HAS_GPU, reason="a GPU is there: it shows the same by itself"), needs_triton]

MODEL = ("--model", "toy.py:Toy")
TEXT = ("--calib", "val.bin", "--tokens", "256", "--seq-len", "16")
SCORED = ("--data", "val.bin", "--bytes", "bytes.bin", "--seq-len", "16", "--max-tokens", "100")
PACK = ("pack", "ckpt.pt", *MODEL)
SWEEP = ("sweep", "ckpt.pt", *MODEL, *SCORED, "--calib", "val.bin", "--tokens", "256", "--bits", "3", "--jobs", "1")
SIZES = "steps=2,vocab_size=64,dim=48,heads=2,seq_len=32,batch_size=4"

ROUNDS = {
    "text": (*PACK, *TEXT, "--budget", "7000", "-o", "out.pgolf"),
    "own text": (*PACK, "--calib", "self", "--tokens", "256", "--seq-len", "16", "--budget", "7000", "-o", "out.pgolf"),
    "closed loop": (*PACK, *TEXT, "--budget", "7000", "--tune", "512", "-o", "out.pgolf"),
    "limit": (*PACK, *TEXT, "--max-kl", "0.1", "-o", "out.pgolf"),
    "curvature": ("pack", "ckpt.pt", "--curvature", "c.safetensors", "--budget", "7000", "-o", "out.pgolf"),
    "estimate": ("estimate", "ckpt.pt", "--curvature", "c.safetensors", "--budget", "7000"),
    "sweep": (*SWEEP, "--methods", "auto", "-o", "swept"),
    "train": ("train", "--data", "shards", "--set", SIZES, "--qat", "int6,start=0.0", "--pack", "60kB", "-o", "run"),
}  # fmt: skip
OTHERS = {
    "calibrate": ("calibrate", "ckpt.pt", *MODEL, *TEXT, "-o", "out.safetensors"),
    "eval": ("eval", "a.pgolf", "ckpt.pt", *MODEL, *SCORED),
    "eval against": ("eval", "a.pgolf", "--against", "ckpt.pt", *MODEL, *SCORED),
    "eval with training": ("eval", "a.pgolf", *MODEL, *SCORED, "--ttt", "--ttt-chunk", "8", "--ttt-rank", "2"),
}


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Where matrices were rounded; by the reference, for the kernel's interpreter would take minutes."""
    found: list[torch.device] = []

    def on_the_cpu(asked, device):
        found.append(device)
        return np.stack([round_matrix(*one) for one in asked])

    monkeypatch.setattr(diagonals, "round_together", on_the_cpu)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    return found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with model, shards and byte counts; its curvature and an artifact, made on the CPU."""
    folder = tmp_path_factory.mktemp("inputs")
    sweep_inputs(folder)
    (folder / "shards").mkdir()
    rng = np.random.default_rng(0)
    for name, length in (("train_000000.bin", 4000), ("val_000000.bin", 600)):
        write_shard(folder / "shards" / name, rng.integers(2, 64, length).astype(np.uint16))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("calibrate", "ckpt.pt", *MODEL, *TEXT, "-o", "c.safetensors")
        run("pack", "ckpt.pt", "--budget", "7000", "-o", "a.pgolf")
    return folder


@pytest.fixture
def there(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for path in inputs.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "USUAL", 4096)  # which is in the time of a test
    with gpu():
        yield


def run(*arguments: str) -> None:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("name", ROUNDS)
def test_what_rounds_does_it_where_the_model_is(name: str, rounded: list[torch.device], there: None) -> None:
    run(*ROUNDS[name], "--device", "cuda")
    assert rounded
    assert {device.type for device in rounded} == {"cuda"}


@pytest.mark.parametrize(
    ("more", "tuned"),
    [((), True), (("--tune", "off"), False), (("--no-measure",), False), (("--tokens", "9999"), False)],
)
def test_a_gpu_tunes_unasked(more: tuple[str, ...], tuned: bool, rounded: list[torch.device], there: None) -> None:
    words = (*PACK, *TEXT, "--budget", "7000", "-o", "out.pgolf", "--device", "cuda", "--report", "r.json")
    run(*words, *more)
    found = json.loads(Path("r.json").read_text())
    assert bool(found["tuned"]) == tuned
    assert any("--tune off leaves it" in note for note in found["notes"]) == tuned
    assert not tuned or found["tuned"]["tokens"] >= 1024


def test_a_gpu_without_room_tunes_nothing(
    rounded: list[torch.device], there: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (100_000, 1 << 30))
    run(*ROUNDS["text"], "--device", "cuda", "--report", "r.json")
    assert json.loads(Path("r.json").read_text())["tuned"] is None


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory."), CurvatureError("no gradient")])
def test_where_nobody_asked_a_failure_is_a_note(
    error: Exception, rounded: list[torch.device], there: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(Repair, "run", failing)
    run(*ROUNDS["text"], "--device", "cuda", "--report", "r.json")
    found = json.loads(Path("r.json").read_text())
    assert found["tuned"] is None
    assert found["measured"]["kl"] > 0
    assert f"not tuned: {error}" in found["notes"]
    with pytest.raises(AssertionError):  # an exit code
        run(*ROUNDS["closed loop"], "--device", "cuda", "--force")


@pytest.mark.parametrize("name", OTHERS)
def test_what_runs_a_model_does_it_there(name: str, rounded: list[torch.device], there: None) -> None:
    run(*OTHERS[name], "--device", "cuda")
    assert not rounded


@pytest.mark.slow
def test_the_demo_is_there_from_end_to_end(rounded: list[torch.device], there: None) -> None:
    run("demo", "--quick", "-o", "out", "--device", "cuda")
    assert {device.type for device in rounded} == {"cuda"}
