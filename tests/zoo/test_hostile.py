"""What a stranger's files and modules hold that no trainer of the zoo has: the right result, or one true line."""

import copy
import json
import os
import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

import pgolf
from pgolf.cli import main
from pgolf.data.shards import write_shard
from pgolf.errors import CurvatureError, ModelError
from pgolf.loading import dense
from pgolf.packer.format import artifact
from tests.helpers import generator
from tests.zoo import animals
from tests.zoo.animals import plain

STATE = plain()
VOCABULARY, WIDTH = 64, 32


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo.py").write_text(animals.MODEL)
    torch.save(STATE, "c.pt")
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def packed(path, *options, code=0):
    return run("pack", path, "--calib", "none", "--budget", "300kB", "-o", "o.pgolf", "--force", *options, code=code)


def refusal(*arguments, code=3):
    """The one line that a command ends with."""
    said = run(*arguments, code=code).stderr
    assert said.count("\n") == 1, said
    return said


def random(*shape):
    return torch.randn(*shape, generator=generator())


# ---- tensors


def test_unsigned_integers_have_no_arithmetic_and_keep_their_bits(folder):
    kinds = {"a": torch.uint16, "b": torch.uint32, "c": torch.uint64}
    state = {name: torch.arange(4096).view(64, 64).to(kind) for name, kind in kinds.items()} | {"w": random(64, 64)}
    torch.save(state, "c.pt")
    packed("c.pt")
    loaded = pgolf.load("o.pgolf")
    for name, kind in kinds.items():
        assert loaded[name].dtype == kind
        assert torch.equal(loaded[name].long(), state[name].long())


@pytest.mark.parametrize("scale", [1e-40, 1e-35])
def test_weights_below_float32s_range_are_not_lost(scale, folder):
    state = {"w": random(64, 64) * scale, "o": random(64, 64)}
    report = pgolf.pack(state, "m.pgolf", budget=30_000)
    assert {row.name: row.kept for row in report.rows}["w"] == "beyond float32's range"
    assert torch.equal(pgolf.load("m.pgolf")["w"], state["w"])


def test_slices_of_one_buffer_are_tensors_of_their_own(folder):
    flat = random(3 * 4096)
    state = {name: flat[i * 4096 :][:4096].view(64, 64) for i, name in enumerate("qkv")}
    state |= {"turned": state["q"].T, "far": random(1, 64).expand(64, 64), "sparse": random(128, 128)[::2, ::2]}
    for form in (True, False):
        torch.save(state, "c.pt", _use_new_zipfile_serialization=form)
        packed("c.pt")
        loaded = pgolf.load("o.pgolf")
        assert len({t.data_ptr() for t in loaded.values()}) == len(state)
        assert all((loaded[n] - t).norm() < 2e-3 * t.norm() for n, t in state.items())


@pytest.mark.parametrize("model", [(), ("--model", "zoo.py:GPT")])
def test_an_average_of_averages_has_the_plain_names(model, folder):
    counters = {"n_averaged": torch.tensor(3), "module.n_averaged": torch.tensor(2)}
    torch.save(animals.renamed(STATE, "module.module.") | counters, "c.pt")
    packed("c.pt", *model)
    assert pgolf.load("o.pgolf").keys() == STATE.keys()


def test_what_safetensors_cannot_hold_is_unpacked_as_pt(folder):
    for name, tensor in (("wide", random(8, 8).to(torch.complex128)), ("\ud800", random(8, 8))):
        torch.save({name: tensor}, "c.pt")
        packed("c.pt")
        said = refusal("unpack", "o.pgolf", "-o", "u.safetensors", code=2)
        assert "name a file that ends in .pt" in said
        run("unpack", "o.pgolf", "-o", "u.pt", "--force")
        assert (torch.load("u.pt")[name] - tensor).abs().max() < 2e-3


def test_quantized_layers_in_a_file_are_named(folder):
    torch.save({"layer": {"_packed": (quantized(), None)}}, "c.pt")
    assert "c.pt: holds quantized tensors (layer._packed.0), and no plain state dict" in refusal("pack", "c.pt")


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop them
        return torch.quantize_per_tensor(torch.randn(8, 8), 0.1, 0, torch.qint8)


# ---- files and folders


def test_an_old_file_of_a_whole_module_says_so(folder):
    torch.save(nn.Linear(4, 4), "c.pt", _use_new_zipfile_serialization=False)
    assert "it is a whole module, pickled with its code" in refusal("pack", "c.pt")


def test_safetensors_are_known_by_their_bytes(folder):
    save_file({n: t.clone() for n, t in STATE.items()}, "w.bin")
    packed("w.bin")
    assert pgolf.load("o.pgolf").keys() == STATE.keys()
    torch.save(STATE, "x.safetensors")
    assert "is a file of torch.save under safetensors' name: call it x.pt" in refusal(
        "pack", "x.safetensors", "-o", "n.pgolf"
    )
    (folder / "t.json").write_text('{"epoch": 3}')
    assert "t.json: is text (JSON?)" in refusal("pack", "t.json", "-o", "n.pgolf")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "model_1.safetensors", "pytorch_model_1.bin"])
def test_a_second_model_in_a_folder_is_not_lost(name, folder):
    (folder / "d").mkdir()
    save_file({n: t.clone() for n, t in STATE.items()}, "d/model.safetensors")
    (folder / "d" / name).write_bytes(b"x")
    assert f"d: holds {name} beside model.safetensors: name the file to pack" in refusal("pack", "d")
    packed("d/model.safetensors")


def test_a_folder_of_checkpoints_names_them(folder):
    for step in (100, 200):
        (folder / "run" / f"checkpoint-{step}").mkdir(parents=True)
        save_file({n: t.clone() for n, t in STATE.items()}, f"run/checkpoint-{step}/model.safetensors")
        torch.save({"state": {}, "param_groups": []}, f"run/checkpoint-{step}/optimizer.pt")
    assert "name the folder in it (checkpoint-100, checkpoint-200)" in refusal("pack", "run")
    packed("run/checkpoint-200")


def test_what_may_have_no_end_is_not_read(folder):
    os.mkfifo("fifo")
    assert "fifo is no regular file" in refusal(
        "calibrate", "c.pt", "--model", "zoo.py:GPT", "--calib", "fifo", "-o", "k.safetensors"
    )
    for path in ("fifo", "/dev/zero"):
        for command in ("inspect", "oracle"):
            assert "is no regular file" in refusal(command, path)
        assert "is no regular file" in refusal("pack", "c.pt", "--model", "zoo.py:GPT", "--calib", path)


def test_raw_tokens_say_how_a_shard_is_made(folder):
    np.arange(64, dtype=np.uint16).tofile("val.bin")
    said = refusal("calibrate", "c.pt", "--model", "zoo.py:GPT", "--calib", "val.bin", "-o", "k.safetensors")
    assert "pgolf.data.shards.write_shard of token ids" in said


@pytest.mark.parametrize("size", ["9" * 400, "9" * 5000, 10**30])
def test_sizes_beyond_all_measure(size):
    with pytest.raises(pgolf.errors.UsageError, match="size"):
        pgolf.pack(STATE, None, budget=size)


# ---- a user's model file


def pack_by(source, name="GPT", code=0):
    with open("mine.py", "w") as file:
        file.write(animals.MODEL + source)
    torch.save(STATE, "c.pt")
    options = ("--model", f"mine.py:{name}", "--budget", "60kB", "--tokens", 64, "-o", "m.pgolf", "--force", "--json")
    return run("pack", "c.pt", *options, code=code)


NO_EXIT = {
    "on import": ("\nimport sys\nsys.exit(0)\n", "GPT", "importing it fails .SystemExit: 0"),
    "when made": ("\ndef make():\n    raise SystemExit(0)\n", "make", "building it fails .SystemExit: 0"),
    "when run": (
        "\nclass Mine(GPT):\n    def forward(self, ids):\n        raise SystemExit(0)\n",
        "Mine",
        r"RuntimeError: it calls sys.exit\(0\)",
    ),
}


@pytest.mark.parametrize("kind", NO_EXIT)
def test_a_model_that_exits_does_not_end_pgolf_in_success(kind, folder):
    source, name, says = NO_EXIT[kind]
    result = pack_by(source, name, code=3)
    assert not result.stdout
    assert re.search(says, result.stderr), result.stderr
    assert not (folder / "m.pgolf").exists()


def test_what_a_model_prints_is_not_among_the_data(folder):
    talks = "class Mine(GPT):\n    def forward(self, ids):\n        print('run')\n        return super().forward(ids)\n"
    result = pack_by(f"\nprint('import')\n{talks}", "Mine")
    assert json.loads(result.stdout)["artifact_bytes"] <= 60_000
    assert {"import", "run"} <= set(result.stderr.split())


def test_what_a_model_prints_is_not_among_the_scores(folder):
    write_shard(folder / "val.bin", np.arange(600) % 64)
    write_shard(folder / "bytes.bin", np.full(600, 3))
    talks = "class Mine(GPT):\n    def forward(self, ids):\n        print('run')\n        return super().forward(ids)\n"
    (folder / "mine.py").write_text(f"{animals.MODEL}\n{talks}")
    text = ("--model", "mine.py:Mine", "--data", "val.bin", "--bytes", "bytes.bin", "--seq-len", 64, "--json")
    assert json.loads(run("eval", "c.pt", *text).stdout)["tokens"] == 599
    sweep = ("--bits", 4, "--methods", "rtn", "--calib", "none", "--jobs", 1, "--baseline", "none", "-o", "s")
    assert json.loads(run("sweep", "c.pt", *text, *sweep).stdout)["before"]["tokens"] == 599


@pytest.mark.parametrize("rise", [float("nan"), float("inf")])
def test_a_rise_that_is_no_number(rise):
    with pytest.raises(pgolf.errors.UsageError, match="a target rise of"):
        pgolf.pack(STATE, None, target_rise=rise)


def test_a_seed_that_no_generator_takes(folder):
    for seed in (-1, 1 << 70):
        assert "'--seed'" in run("pack", "c.pt", "--seed", seed, code=2).stderr


def test_a_file_that_parses_the_command_line_sees_its_own(folder):
    parses = "import argparse, sys\np = argparse.ArgumentParser()\np.add_argument('--lr', default=1)\np.parse_args()\n"
    pack_by(f"\n{parses}open(sys.argv[0]).close()\n")


def test_a_file_that_changes_the_folder(folder):
    pack_by("\nimport os\nos.chdir('/')\n")


def test_a_module_without_data_is_refused(folder):
    meta = "\ndef make():\n    with torch.device('meta'):\n        return GPT()\n"
    assert "wte.weight of GPT has no data (meta device): build the module" in pack_by(meta, "make", code=3).stderr


# ---- modules


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.up = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def hidden(self, ids):
        return torch.relu(self.up(self.wte(ids)))

    def scores(self, ids):
        return self.head(self.hidden(ids))


@dataclass
class Output:
    loss: Any
    prediction: torch.Tensor


def model(forward):
    return type("Mine", (Model,), {"forward": forward})()


def calibrated(module):
    return pgolf.calibrate(module, [torch.randint(0, VOCABULARY, (4, 32), generator=generator())])


FOUND = {
    "behind hidden states": lambda s, ids: (s.hidden(ids), s.scores(ids)),
    "under another name": lambda s, ids: {"hidden": s.hidden(ids), "prediction": s.scores(ids)},
    "in a dataclass": lambda s, ids: Output(None, s.scores(ids)),
    "in lists": lambda s, ids: [[s.scores(ids)]],
    "by keywords alone": lambda s, **batch: s.scores(batch["input_ids"]),
}


@pytest.mark.parametrize("kind", FOUND)
def test_logits_are_known_by_the_width_of_the_table(kind):
    found = calibrated(model(FOUND[kind]))
    assert found.coverage["head.weight"] == "traced"


NOT_LOGITS = {
    "hidden states": (lambda s, ids: s.hidden(ids), "a vocabulary of 32, its table has 64 rows"),
    "probabilities": (lambda s, ids: s.scores(ids).softmax(-1), "returns probabilities"),
    "a mask is wanted": (lambda s, ids, mask: s.head(s.hidden(ids) * mask[..., None]), "wants more than token ids"),
    "positions are wanted": (lambda s, ids, pos: s.scores(ids), "wants more than token ids"),
}


@pytest.mark.parametrize("kind", NOT_LOGITS)
def test_what_is_not_logits_is_not_taken_for_them(kind):
    forward, says = NOT_LOGITS[kind]
    with pytest.raises((ModelError, CurvatureError), match=says):
        calibrated(model(forward))


def test_log_probabilities_are_logits():
    assert calibrated(model(lambda s, ids: F.log_softmax(s.scores(ids), -1))).coverage["head.weight"] == "traced"


def test_modules_that_are_not_ready_say_what_they_are():
    lazy = nn.Sequential(nn.Embedding(8, 4), nn.LazyLinear(8))
    for act in (calibrated, lambda m: pgolf.pack(m, None)):
        with pytest.raises(ModelError, match=r"1\.weight has no shape yet \(a lazy module\)"):
            act(lazy)
    with pytest.raises(ModelError, match=r"a dict is no nn\.Module"):
        calibrated({"model": Model()})


@pytest.mark.filterwarnings("ignore")  # torch is about to drop them
def test_a_quantized_module_is_refused():
    module = torch.ao.quantization.quantize_dynamic(model(Model.scores), {nn.Linear}, torch.qint8)
    for act in (calibrated, lambda m: pgolf.pack(m, None)):
        with pytest.raises(ModelError, match=r"up is quantized \(Linear\): give the module from before"):
            act(module)


def test_weights_made_in_inference_mode_cannot_be_loaded_into(tmp_path):
    pgolf.pack(Model(), tmp_path / "m.pgolf")
    with torch.inference_mode():
        frozen = Model()
    with pytest.raises(ModelError, match=r"the weights cannot be put into Model: .*inference tensor"):
        pgolf.load_into(tmp_path / "m.pgolf", frozen)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
def test_compiled_around_wrapped_around_compiled():
    ddp = animals.wrapper("DistributedDataParallel", "module")
    report = pgolf.pack(torch.compile(ddp(torch.compile(Model()))), None)
    assert {row.name for row in report.rows} == Model().state_dict().keys()


def test_a_packed_module_can_be_copied(tmp_path):
    module = nn.Sequential(nn.Embedding(256, 64), nn.Linear(64, 256, bias=False))
    pgolf.pack(module, tmp_path / "m.pgolf", budget=16_000)
    assert pgolf.load_module(tmp_path / "m.pgolf", module, packed=True).packed
    again, ids = copy.deepcopy(module), torch.arange(9)[None]
    assert type(again[1].weight.data) is type(module[1].weight.data)
    assert torch.equal(again(ids), module(ids))
    with torch.no_grad():
        again[1].weight.low.zero_()
    assert not torch.equal(again(ids), module(ids)), "the words are its own"
    once_more = pgolf.pack(module, None, method="keep").data
    assert torch.equal(
        dense.tensors_of(artifact.decode(once_more)[0])["1.weight"], pgolf.load(tmp_path / "m.pgolf")["1.weight"]
    )


def test_a_wide_shard_and_a_link_to_one(folder):
    write_shard(folder / "wide.bin", np.arange(600) % 64, wide=True)
    os.symlink("wide.bin", "link.bin")
    for name in ("wide.bin", "link.bin"):
        run("calibrate", "c.pt", "--model", "zoo.py:GPT", "--calib", name, "-o", f"{name}.safetensors", "--tokens", 64)
