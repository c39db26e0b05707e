"""The same bytes whoever packs, the same bits whoever decodes: threads, hash seeds, orders, saved curvature, four decoders."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import pgolf
from fuzz.artifacts import artifacts
from pgolf.code import stub
from pgolf.kernels import dequant, rans_decode
from pgolf.loading import dense, on_device
from pgolf.models.checkpoint import to_bytes
from pgolf.packer.coder import stream
from pgolf.quant.curvature.store import Curvature
from tests.helpers import generator, sweep_inputs, toy_module, toy_state
from tests.kernels.places import interpreted

PACKS = """
import hashlib, json, os, sys
if cores := json.loads(sys.argv[1])["cores"]:
    os.sched_setaffinity(0, range(cores))
import torch
torch.set_num_threads(json.loads(sys.argv[1])["torch"])
from pgolf.cli import main
for number, line in enumerate(sys.argv[2:]):
    main([*line.split(), "-o", f"{sys.argv[1]}-{number}"], standalone_mode=False)
"""
COMMANDS = (
    "pack ckpt.pt --budget 9kB --model toy.py:Toy --calib val.bin --tokens 640",
    "pack ckpt.pt --budget 8kB --method gptq --model toy.py:Toy --calib self --tokens 640",
    "calibrate ckpt.pt --model toy.py:Toy --calib val.bin --tokens 640",
)
PROCESSES = [  # of torch, OpenMP and numba; the cores they may use; the seed of Python's hashes
    {"torch": 1, "omp": 1, "numba": 1, "cores": 0, "hash": "0"},
    {"torch": 2, "omp": 2, "numba": 2, "cores": 0, "hash": "1"},
    {"torch": 3, "omp": 3, "numba": 1, "cores": 1, "hash": "4294967295"},
]


def packed(**options):
    return pgolf.pack(toy_state(), None, budget=9000, **options).data


@pytest.fixture(scope="module")
def curvature():
    model = toy_module(toy_state())
    ids = torch.randint(0, 64, (8, 32), generator=generator(5))
    return pgolf.calibrate(model, [ids], tokens=256, progress=False)


@pytest.mark.slow
def test_threads_cores_and_hash_seeds_change_no_byte(tmp_path):
    """Calibration included: its sums run over tokens, whose order no number of threads may change."""
    sweep_inputs(tmp_path)
    running = []
    for process in PROCESSES:
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": process["hash"],
            "OMP_NUM_THREADS": str(process["omp"]), "NUMBA_NUM_THREADS": str(process["numba"]),
        }  # fmt: skip
        command = [sys.executable, "-c", PACKS, json.dumps(process), *COMMANDS]
        running.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL))
    assert [process.wait(timeout=300) for process in running] == [0] * len(PROCESSES)
    for number, command in enumerate(COMMANDS):
        made = {(tmp_path / f"{json.dumps(process)}-{number}").read_bytes() for process in PROCESSES}
        assert len(made) == 1, f"{len(made)} different files of `{command}`"


def test_runs_and_orders_of_the_state_dict_change_no_byte(curvature):
    once, state = packed(curvature=curvature), toy_state()
    assert packed(curvature=curvature) == once
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(list(state))
        assert pgolf.pack({name: state[name] for name in order}, None, budget=9000, curvature=curvature).data == once


def test_a_saved_curvature_packs_as_the_measured_one(curvature, tmp_path):
    curvature.save(tmp_path / "one")
    loaded = Curvature.load(tmp_path / "one")
    loaded.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert packed(curvature=loaded) == packed(curvature=curvature)


def test_the_global_random_state_neither_counts_nor_moves(curvature):
    torch.manual_seed(1)
    before, once = torch.get_rng_state(), packed(curvature=curvature)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert packed(curvature=curvature) == once


def digest(state):
    parts = [(name, str(t.dtype), list(t.shape), to_bytes(t).hex()) for name, t in sorted(state.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def by_the_stub(path):
    space = {}
    exec(stub.source(), space)
    return space["load"](path, torch)


def by_triton(path, monkeypatch):
    """Both kernels in Triton's interpreter: entropy decoding and dequantization."""
    monkeypatch.setattr(
        on_device, "rans_decode", lambda coded, device, _: rans_decode.decode_with_kernel(coded, device)
    )
    monkeypatch.setattr(on_device, "dequant", lambda *parts, out: dequant.launch_dequant(*parts, out))
    return dense.load_by(path, on_device.OnDevice(torch.device("cpu")))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """One artifact with every kind of entry, one as pack makes it; of many lanes, which the interpreter takes together."""
    folder = tmp_path_factory.mktemp("artifacts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream.encode, "__defaults__", (16, None))  # bytes a lane, loops
        (folder / "kinds").write_bytes(artifacts.__wrapped__()[0])
        state = {"w": torch.randn(48, 48, generator=generator())}
        (folder / "packed").write_bytes(pgolf.pack(state, None, budget=1200).data)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("which", [0, 1], ids=["every kind of entry", "what pack writes"])
@pytest.mark.parametrize(
    "decoder",
    ["compiled", "stub", pytest.param("triton", marks=[*interpreted, pytest.mark.filterwarnings("ignore:overflow")])],
)
def test_every_decoder_gives_the_bits_of_numpy(paths, which, decoder, monkeypatch):
    monkeypatch.setenv("PGOLF_COMPILED", "0")
    path = paths[which]
    plain = digest(pgolf.load(path))
    if decoder == "compiled":
        monkeypatch.setenv("PGOLF_COMPILED", "1")
        assert digest(pgolf.load(path)) == plain
    else:
        assert digest(by_the_stub(path) if decoder == "stub" else by_triton(path, monkeypatch)) == plain
