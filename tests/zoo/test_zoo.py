"""Checkpoints in the manner of real trainers, through `pack` on the command line and back: the weights, or the true reason."""

import json
import re
import subprocess
import sys
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file, save_model

import pgolf
from pgolf.cli import main
from pgolf.data.shards import write_shard
from tests.helpers import generator
from tests.zoo import animals
from tests.zoo.animals import made, plain, randomness, renamed, with_optimizer

CLOSE = 2e-3  # relative, at a budget of some 15 bits a weight
FRUGAL = 60_000  # bytes that the weights of GPT take at that; twice the embedding would not fit in


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo.py").write_text(animals.MODEL)
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    assert "Traceback" not in result.output + result.stderr
    if code:
        assert result.stderr.count("\n") == 1, result.stderr
    return result


def pack(path, *options, model=None):
    """(loaded state dict, report) of a checkpoint."""
    chosen = ("--model", f"zoo.py:{model}") if model else ()
    command = ("pack", path, "--calib", "none", "--budget", FRUGAL, "-o", "out.pgolf", "--force", "--json")
    report = json.loads(run(*command, *chosen, *options).stdout)
    return pgolf.load("out.pgolf"), report


def holds(loaded, state):
    """Every tensor of `state` came back, and nothing else."""
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape), name
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            assert torch.equal(loaded[name], tensor), name
        elif tensor.numel():
            assert (loaded[name].float() - tensor.float()).norm() <= CLOSE * tensor.float().norm(), name


def fates(report):
    found = {}
    for item in report["account"]:
        found.setdefault(item["fate"], set()).add(item["path"])
    return found


# ---- one model, beside whatever else: found, and packed

STATE, OPTIMIZER = with_optimizer()
AVERAGE = {name: tensor * 0.9 for name, tensor in plain().items()}


def sharing():
    return made().state_dict()


def holding_itself():
    value = {"model": STATE}
    value["me"] = value
    return value


BESIDE = {
    "plain": lambda: STATE,
    "sharing storage": sharing,
    "nanogpt": lambda: {
        "model": STATE, "optimizer": OPTIMIZER, "model_args": {"n_layer": 2}, "iter_num": 10,
        "best_val_loss": torch.tensor(3.2), "config": {"lr": 1e-3},
    },
    "step": lambda: {"model": STATE, "step": torch.tensor(100)},
    "tensors first": lambda: {"rng": torch.get_rng_state(), "lr": torch.tensor(0.1), "state_dict": STATE},
    "random states": lambda: {"model": STATE, "rng_states": randomness()},
    "loss history": lambda: {"net": STATE, "train_losses": torch.rand(500), "val_losses": torch.rand(50)},
    "numpy scalars": lambda: {"model": STATE, "best": np.float64(3.2), "step": np.int64(7), "done": np.bool_(True)},
    "numpy vectors": lambda: {"model": STATE, "losses": np.linspace(0, 1, 10)},
    "modded-nanogpt": lambda: {"step": 5, "code": "import torch", "model": renamed(STATE, "_orig_mod."),
                               "optimizers": [OPTIMIZER, OPTIMIZER]},
    "lightning": lambda: {
        "epoch": 1, "global_step": 10, "pytorch-lightning_version": "2.5.0", "state_dict": renamed(STATE, "model."),
        "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(1.0)}},
        "optimizer_states": [OPTIMIZER], "lr_schedulers": [{"last_epoch": 1}], "hyper_parameters": {"lr": 0.1},
    },
    "lightning, compiled": lambda: {
        "pytorch-lightning_version": "2.5.0", "global_step": 10, "state_dict": renamed(STATE, "model._orig_mod."),
    },
    "fabric": lambda: {"model": renamed(STATE, "_forward_module."), "optimizer": OPTIMIZER, "iter_num": 3},
    "fabric over ddp": lambda: {"model": renamed(STATE, "_forward_module.module."), "iter_num": 3},
    "deepspeed": lambda: {
        "module": STATE, "buffer_names": [], "optimizer": None, "frozen_param_shapes": None, "ds_version": "0.16",
        "param_shapes": [OrderedDict((n, t.shape) for n, t in STATE.items())], "mp_world_size": 1, "global_steps": 9,
    },
    "fsdp, full": lambda: renamed(STATE, "_fsdp_wrapped_module."),
    "ddp": lambda: renamed(STATE, "module."),
    "compiled": lambda: renamed(STATE, "_orig_mod."),
    "ddp of compiled": lambda: renamed(STATE, "module._orig_mod."),
    "compiled ddp": lambda: renamed(STATE, "_orig_mod.module."),
    "compiled blocks": lambda: {n.replace("blocks.0.", "blocks.0._orig_mod."): t for n, t in STATE.items()},
    "checkpointed blocks": lambda: {
        n.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."): t for n, t in STATE.items()
    },
    "averaged model": lambda: {**renamed(STATE, "module."), "n_averaged": torch.tensor(3)},
    "deep": lambda: {"a": {"b": {"c": {"d": {"e": {"model": STATE}}}}}, "step": torch.tensor(1)},
    "in a list": lambda: ["header", {"model": STATE}, 3],
    "in a tuple": lambda: (STATE, OPTIMIZER),
    "fsdp's optimizer": lambda: {
        "model": STATE,
        "optim": {"state": {n: {"exp_avg": t, "exp_avg_sq": t, "step": torch.tensor(1.0)} for n, t in STATE.items()},
                  "param_groups": []},
    },
    "bare optimizer slots": lambda: {
        "params": STATE, "extra": {0: {"momentum_buffer": torch.randn(64, 48)}, 1: {"momentum_buffer": torch.randn(9, 9)}}
    },
    "the same twice": lambda: {"model": STATE, "best": STATE},
    "an equal copy": lambda: {"model": STATE, "ema": {name: t.clone() for name, t in STATE.items()}},
    "odd name": lambda: {"my_transformer_v2": STATE, "seen": torch.tensor(9)},
    "extra state of layers": lambda: {"model": {**STATE, "blocks.0._extra_state": None}, "seen": {"ids": torch.arange(9)}},
    "a batch of text": lambda: {"model": STATE, "batch": {"x": torch.ones(64, 64, dtype=torch.int64)}},
    "sparse moments": lambda: {"model": STATE, "optimizer": {"state": {0: {"exp_avg": torch.eye(4).to_sparse()}}}},
    "a dict that holds itself": holding_itself,
    "parameters": lambda: {name: torch.nn.Parameter(t.clone()) for name, t in STATE.items()},
    "grad scaler": lambda: {"model": STATE, "scaler": {"scale": torch.tensor(65536.0), "growth": torch.ones(3)}},
}  # fmt: skip


@pytest.mark.parametrize("kind", BESIDE)
def test_a_model_beside_whatever_else(kind, folder):
    torch.save(BESIDE[kind](), "c.pt")
    loaded, report = pack("c.pt")
    holds(loaded, plain())
    assert loaded["wte.weight"].data_ptr() == loaded["lm_head.weight"].data_ptr(), "paid once"
    ids = torch.arange(64)[None]
    with torch.no_grad():
        logits, wanted = pgolf.load_into("out.pgolf", made(seed=9))(ids), made()(ids)
    assert (logits - wanted).norm() <= CLOSE * wanted.norm()
    found = fates(report)
    assert len(found["packed"]) + len(found.get("kept", ())) + len(found["alias"]) == len(STATE)
    in_file = []
    count(BESIDE[kind](), in_file, set())
    assert len(report["account"]) == len(in_file), "every tensor of the file is accounted for"


def count(value, found, seen):
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
        seen.add(id(value))
        for inner in value.values() if isinstance(value, dict) else value:
            count(inner, found, seen)


def test_what_was_left_out_is_said(folder):
    torch.save(BESIDE["nanogpt"](), "c.pt")
    said = run("pack", "c.pt", "--calib", "none", "--budget", FRUGAL).stdout
    assert re.search(r"left out +optimizer \(\d+ tensors\), [\d,]+ B: optimizer state", said)
    assert re.search(r"left out +best_val_loss, 4 B", said)
    assert "one tensor         wte.weight = lm_head.weight" in said
    torch.save(BESIDE["ddp of compiled"](), "c.pt")
    assert (
        "names without module._orig_mod." in run("pack", "c.pt", "--calib", "none", "--method", "rtn", "--force").stdout
    )


# ---- several sets of weights: chosen, or refused

SEVERAL = {
    "ema": lambda: {"model": STATE, "ema": AVERAGE, "step": 3},
    "ema of a callback": lambda: {"state_dict": STATE, "callbacks": {"EMA": {"ema": AVERAGE}}},
    "gan": lambda: {"generator": STATE, "discriminator": plain("Critic")},
    "two parts": lambda: {"encoder": {"w": torch.randn(64, 64)}, "decoder": {"w": torch.randn(64, 64)}},
    "list": lambda: [STATE, AVERAGE],
    "shadow list": lambda: {"model": STATE, "ema": {"decay": 0.9, "shadow_params": list(AVERAGE.values())}},
    "a loose matrix": lambda: {"model": STATE, "adapter": torch.randn(64, 48)},
    "a flat average": lambda: {"model": STATE, "ema": torch.cat([t.flatten() for t in AVERAGE.values()])},
    "statistics": lambda: {"model": STATE, "normalizer": {"mean": torch.rand(48), "std": torch.rand(48)}},
    "decay and average": lambda: {"model": STATE, "ema": (0.99, AVERAGE)},
    "a quantized copy": lambda: {"model": STATE, "int8": {"w": quantized(64)}},
    "codes": lambda: {"model": STATE, "int8": {"w": torch.ones(64, 64, dtype=torch.int8)}},
    "without data": lambda: {"model": STATE, "draft": {n: t.to("meta") for n, t in STATE.items()}},
    "log_head": lambda: {"model": STATE, "losses": {"w": torch.randn(64, 64)}},
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_weights_that_would_be_lost_are_an_error_with_the_ways_to_choose(kind, folder):
    torch.save(SEVERAL[kind](), "c.pt")
    for command in (("pack", "c.pt"), ("estimate", "c.pt", "--budget", "9kB")):
        said = run(*command, code=3).stderr
        assert re.search(r"c\.pt: several state dicts \(.*say which to take: --state \S+", said), said
    assert not (folder / "c.pgolf").exists()


@pytest.mark.parametrize(
    ("kind", "state", "wanted"),
    [
        ("ema", "model", STATE),
        ("ema", "ema", AVERAGE),
        ("ema of a callback", "callbacks.EMA.ema", AVERAGE),
        ("ema of a callback", "EMA.ema", AVERAGE),
        ("gan", "discriminator", plain("Critic")),
        ("list", "1", AVERAGE),
        ("shadow list", "model", STATE),
        ("decay and average", "ema", AVERAGE),
        ("without data", "model", STATE),
    ],
)
def test_a_chosen_set_is_packed_alone(kind, state, wanted, folder):
    torch.save(SEVERAL[kind](), "c.pt")
    loaded, report = pack("c.pt", "--state", state)
    holds(loaded, wanted)
    assert fates(report)["left out"]


def test_a_whole_tree_and_what_is_not_there(folder):
    parts = SEVERAL["two parts"]()
    torch.save({"best": parts, "optimizer": OPTIMIZER}, "c.pt")
    flat = {f"{k}.w": v["w"] for k, v in parts.items()}
    holds(pack("c.pt", "--state", "best")[0], flat)
    holds(pack("c.pt", "--state", ".")[0], {f"best.{name}": t for name, t in flat.items()})
    said = run("pack", "c.pt", "--state", "optimizer", code=2).stderr
    assert "--state optimizer: no such weights; there are: best.encoder, best.decoder" in said


def test_a_module_decides_which_weights_are_its_own(folder):
    torch.save(SEVERAL["gan"](), "c.pt")
    holds(pack("c.pt", model="Critic")[0], plain("Critic"))
    holds(pack("c.pt", model="GPT")[0], STATE)
    torch.save(SEVERAL["ema"](), "c.pt")
    said = run("pack", "c.pt", "--model", "zoo.py:GPT", "--calib", "none", code=3).stderr
    assert "several state dicts (model, ema) fit GPT; say which to take: --state model or --state ema" in said
    holds(pack("c.pt", "--state", "ema", model="GPT")[0], AVERAGE)


def test_an_average_among_the_names_of_one_state_dict(folder):
    """As Lightning's EMA modules do."""
    state = renamed(STATE, "model.") | renamed(AVERAGE, "ema_model.module.")
    torch.save({"state_dict": state}, "c.pt")
    assert pack("c.pt")[0].keys() == state.keys(), "nothing tells them apart, so both are packed"
    assert "fit GPT" in run("pack", "c.pt", "--model", "zoo.py:GPT", "--calib", "none", code=3).stderr
    holds(pack("c.pt", "--state", "ema_model", model="GPT")[0], AVERAGE)
    holds(pack("c.pt", "--state", "state_dict.model")[0], STATE)


def test_every_command_takes_a_choice(folder):
    torch.save(SEVERAL["ema"](), "c.pt")
    write_shard(folder / "val.bin", np.random.default_rng(0).integers(0, 64, 2000).astype(np.uint16))
    write_shard(folder / "bytes.bin", np.full(2000, 3, np.uint16))
    model, text = ("--model", "zoo.py:GPT"), ("--data", "val.bin", "--bytes", "bytes.bin", "--seq-len", 64)
    losses = {}
    for state in ("model", "ema"):
        chosen = ("--state", state)
        losses[state] = json.loads(run("eval", "c.pt", *model, *text, *chosen, "--json").stdout)["bpb"]
        run("calibrate", "c.pt", *model, *chosen, "-o", f"{state}.safetensors", "--tokens", 256, "--seq-len", 32)
        run("estimate", "c.pt", *chosen, "--budget", FRUGAL)
    assert losses["model"] != losses["ema"]
    sweep = ("sweep", "c.pt", *model, *text, "--bits", 4, "--methods", "rtn", "--calib", "none", "--jobs", 1)
    found = json.loads(run(*sweep, "--state", "ema", "--baseline", "none", "-o", "s", "--json").stdout)
    assert found["before"]["bpb"] == pytest.approx(losses["ema"], rel=1e-6)


# ---- names of wrappers


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.module.", "_orig_mod.model._orig_mod.", "gpt.lm."])
def test_names_that_fit_the_module_after_any_front(prefix, folder):
    torch.save(renamed(STATE, prefix), "c.pt")
    holds(pack("c.pt", model="GPT")[0], STATE)


def test_a_part_that_was_wrapped(folder):
    torch.save({n.replace("blocks.0.", "blocks.0.module."): t for n, t in STATE.items()}, "c.pt")
    holds(pack("c.pt", model="GPT")[0], STATE)


def test_what_is_really_called_module_or_model_stays(folder):
    state = plain("Wrapping")
    torch.save(state, "c.pt")
    holds(pack("c.pt")[0], state)
    holds(pack("c.pt", model="Wrapping")[0], state)
    torch.save(renamed(state, "module."), "c.pt")
    holds(pack("c.pt", model="Wrapping")[0], state)
    pgolf.pack(made("Wrapping"), "m.pgolf")
    assert pgolf.load("m.pgolf").keys() == state.keys()


def test_names_never_collide(folder):
    both = {"w": torch.randn(64, 64), "_orig_mod.w": torch.randn(64, 64)}
    torch.save(both, "c.pt")
    holds(pack("c.pt")[0], both)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        torch.nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        animals.wrapper("DistributedDataParallel", "module"),
        animals.wrapper("_FabricModule", "_forward_module"),
        lambda m: torch.compile(animals.wrapper("DistributedDataParallel", "module")(m)),
    ],
)
def test_wrapped_modules_give_the_plain_class_its_names(wrap, folder):
    report = pgolf.pack(wrap(made()), "m.pgolf", budget=np.int64(FRUGAL))
    holds(pgolf.load("m.pgolf"), STATE)
    assert any("which wrappers put there" in note for note in report.notes)
    again = pgolf.load_into("m.pgolf", wrap(made(seed=1)))
    assert torch.allclose(next(p for p in again.parameters()).detach(), STATE["wte.weight"], atol=1e-2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
def test_a_part_of_a_module_that_is_wrapped(folder):
    module = made()
    module.blocks[0] = torch.compile(module.blocks[0])
    module.blocks[1] = animals.wrapper("CheckpointWrapper", "_checkpoint_wrapped_module")(module.blocks[1])
    pgolf.pack(module, "m.pgolf", budget=float(FRUGAL))
    holds(pgolf.load("m.pgolf"), STATE)


# ---- ties


def tied_four_ways(folder):
    torch.save(made().state_dict(), "shared.pt")
    torch.save(plain(), "copied.pt")
    save_model(made(), "one.safetensors")
    torch.save({n: t for n, t in plain().items() if n != "lm_head.weight"}, "dropped.pt")
    return ["shared.pt", "copied.pt", "one.safetensors", "dropped.pt"]


def test_a_tied_head_is_paid_once_however_it_was_saved(folder):
    sizes = []
    for file in tied_four_ways(folder):
        loaded, report = pack(file, model="GPT")
        holds(loaded, STATE)
        assert loaded["wte.weight"].data_ptr() == loaded["lm_head.weight"].data_ptr()
        sizes.append(report["artifact_bytes"])
        run(
            "calibrate",
            file,
            "--model",
            "zoo.py:GPT",
            "-o",
            "k.safetensors",
            "--tokens",
            64,
            "--seq-len",
            16,
            "--force",
        )
    assert max(sizes) <= FRUGAL


def test_folders_that_were_unpacked_are_read_again(folder):
    torch.save(STATE, "c.pt")
    first, _ = pack("c.pt")
    run("unpack", "out.pgolf", "-o", "hf")
    holds(pack("hf")[0], first)
    holds(pack("hf", model="GPT")[0], first)
    run("unpack", "out.pgolf", "-o", "flat.safetensors")
    holds(pack("flat.safetensors", model="GPT")[0], first)
    write_shard(folder / "val.bin", np.random.default_rng(0).integers(0, 64, 2000).astype(np.uint16))
    write_shard(folder / "bytes.bin", np.full(2000, 3, np.uint16))
    text = ("--model", "zoo.py:GPT", "--data", "val.bin", "--bytes", "bytes.bin", "--seq-len", 64)
    score = json.loads(run("eval", "hf", *text, "--json").stdout)["bpb"]
    run("calibrate", "hf", "--model", "zoo.py:GPT", "-o", "k.safetensors", "--tokens", 64, "--seq-len", 16)
    run("estimate", "hf", "--curvature", "k.safetensors", "--budget", FRUGAL)
    sweep = (
        "sweep",
        "hf",
        *text,
        "--bits",
        4,
        "--methods",
        "rtn",
        "--calib",
        "none",
        "--jobs",
        1,
        "--baseline",
        "none",
    )
    assert json.loads(run(*sweep, "-o", "s", "--json").stdout)["before"]["bpb"] == pytest.approx(score, rel=1e-6)


def test_two_values_of_one_parameter_are_an_error(folder):
    torch.save(STATE | {"lm_head.weight": STATE["wte.weight"] + 1}, "c.pt")
    said = run("pack", "c.pt", "--model", "zoo.py:GPT", "--calib", "none", code=3).stderr
    assert "wte.weight and lm_head.weight are one parameter in GPT but differ" in said
    assert "lm_head.weight would win" in said
    assert pack("c.pt", model="Untied")[0]["lm_head.weight"] is not None


def test_equal_vectors_and_constants_are_not_tied(folder):
    state = {f"{i}.norm": torch.ones(512) for i in range(3)} | {f"{i}.zero": torch.zeros(64, 64) for i in range(2)}
    torch.save(state, "c.pt")
    loaded, report = pack("c.pt", "--method", "keep")
    holds(loaded, state)
    assert "alias" not in fates(report)


def test_equal_masks_of_layers_are_one(folder):
    state = {f"{i}.mask": torch.ones(64, 64, dtype=torch.bool).tril() for i in range(4)} | {"w": torch.randn(64, 64)}
    torch.save(state, "c.pt")
    loaded, report = pack("c.pt")
    holds(loaded, state)
    assert len(fates(report)["alias"]) == 3


# ---- Hugging Face folders


def folder_of(path, state, shards=1, pickled=False):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "tiny"}))
    stem, ext, save = ("pytorch_model", "bin", torch.save) if pickled else ("model", "safetensors", save_file)
    if shards == 1:
        save(dict(state), path / f"{stem}.{ext}")
        return path
    names = {n: f"{stem}-{i % shards + 1:05d}-of-{shards:05d}.{ext}" for i, n in enumerate(state)}
    for file in set(names.values()):
        save({n: t for n, t in state.items() if names[n] == file}, path / file)
    (path / f"{stem}.{ext}.index.json").write_text(json.dumps({"weight_map": names}))
    return path


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("pickled", [False, True])
def test_folders_of_transformers(shards, pickled, folder):
    state = {f"model.{n}": t for n, t in plain("Untied").items()}  # a tied one is all "model.", and that stays
    loaded, _ = pack(folder_of(folder / "hf", state, shards, pickled))
    holds(loaded, state)
    holds(pack("hf", model="Untied")[0], plain("Untied"))


def test_one_shard_alone_is_not_the_model(folder):
    state = {f"w{i}": torch.randn(64, 64) for i in range(4)}
    for pickled, name in ((False, "model-00001-of-00002.safetensors"), (True, "pytorch_model-00001-of-00002.bin")):
        made_folder = folder_of(folder / str(pickled), state, 2, pickled)
        assert "one of 2 shards of a model: name the folder" in run("pack", made_folder / name, code=3).stderr


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([".metadata", "__0_0.distcp"], "dcp_to_torch"),
        (["zero_to_fp32.py", "latest"], "zero_to_fp32.py"),
        (["mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"], "zero_to_fp32.py"),
        (["adapter_model.safetensors", "adapter_config.json"], "merge_and_unload"),
        (["ckpt.pt"], r"name the file in it \(ckpt\.pt\)"),
        ([], "save_pretrained"),
    ],
)
def test_other_folders_say_what_they_are(files, says, folder):
    (folder / "d").mkdir()
    for name in files:
        (folder / "d" / name).write_bytes(b"x")
    assert re.search(says, run("pack", "d", code=3).stderr)


# ---- buffers and odd values


def masked():
    return made("Masked").state_dict()


def test_masks_and_tables_keep_their_bits(folder):
    state = masked()
    torch.save(state, "c.pt")
    for options, model in (((), None), (("--set", "mask=keep"), None), ((), "Masked")):
        loaded, report = pack("c.pt", *options, model=model)
        assert torch.equal(loaded["mask"], state["mask"])
        assert any("mask (2,016 of 4,096 values, the first at [0, 1])" in note for note in report["notes"])
    assert torch.equal(loaded["cos"], state["cos"]), "a buffer, where the module tells"
    pgolf.pack(made("Masked"), "m.pgolf", budget=90_000)
    assert torch.equal(pgolf.load("m.pgolf")["cos"], state["cos"])
    summary = pgolf.load_module("m.pgolf", made("Masked", 1), packed=True)
    assert "mask" not in summary.packed


def test_an_infinite_parameter_is_refused_where_a_module_tells(folder):
    state = plain()
    state["blocks.0.up.weight"][3, 5] = float("inf")
    torch.save(state, "c.pt")
    said = run("pack", "c.pt", "--model", "zoo.py:GPT", "--calib", "none", code=3).stderr
    assert "infinite weights in blocks.0.up.weight (1 of 4,608 values, the first at [3, 5]): the training run" in said
    _, report = pack("c.pt")
    assert [row["kept"] for row in report["rows"] if row["name"] == "blocks.0.up.weight"] == ["holds infinities"]


def test_nan_is_counted_and_located(folder):
    state = plain()
    state["blocks.0.up.weight"][3:5, 7] = float("nan")
    torch.save(state, "c.pt")
    for model in ((), ("--model", "zoo.py:GPT")):
        said = run("pack", "c.pt", "--calib", "none", *model, code=3).stderr
        assert "NaN in blocks.0.up.weight (2 of 4,608 values, the first at [3, 7])" in said


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_values_at_the_end_of_a_range_come_back_finite(dtype, folder):
    w = torch.randn(64, 64, generator=generator()) * torch.finfo(dtype).max / 8
    w[::7, ::5] = torch.finfo(dtype).max
    state = {"w": w.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype), "v": torch.randn(64, 64)}
    for budget in (6000, 20_000):
        loaded = packed_at(state, budget)
        assert torch.isfinite(loaded["w"].float()).all()


def packed_at(state, budget, **options):
    pgolf.pack(state, "m.pgolf", budget=budget, **options)
    return pgolf.load("m.pgolf")


def test_a_cast_that_would_overflow_is_refused(folder):
    torch.save({"w": torch.full((64, 64), 7e4) * torch.rand(64, 64)}, "c.pt")
    said = run("pack", "c.pt", "--set", "w=fp16", code=2).stderr
    assert "'w' has values beyond what float16 holds" in said
    assert pack("c.pt", "--set", "w=bf16")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e5m2, torch.float32])
def test_codes_never_take_more_than_the_tensor(dtype, folder):
    state = {
        "w": torch.randn(256, 128, generator=generator()).to(dtype),
        "v": torch.randn(128, 128, generator=generator()),
    }
    raw = sum(t.numel() * t.element_size() for t in state.values())
    report = pgolf.pack(state, "m.pgolf", budget=raw + 2000)
    assert report.artifact_bytes <= raw + 600
    for row in report.rows:
        assert row.num_bytes <= state[row.name].numel() * state[row.name].element_size()
    if dtype == torch.float8_e5m2:
        assert torch.equal(pgolf.load("m.pgolf")["w"].float(), state["w"].float()), "kept, so exact"


def test_integers_come_back_to_the_bit_on_every_path(folder):
    state = plain() | {
        "ids": torch.randint(-(2**31), 2**31 - 1, (64, 64), generator=generator()).to(torch.int32),
        "codes": torch.randint(-100, 100, (64, 64), generator=generator()).to(torch.int8),
        "wide": torch.tensor([2**40 + 1, -(2**53) - 1]),
        "small": torch.randint(0, 900, (64, 64), generator=generator()),
    }
    holds(packed_at(state, 90_000), state)
    from pgolf.loading import dense, on_device

    there = dense.load_by("m.pgolf", on_device.OnDevice(torch.device("cpu")))
    for name in ("ids", "codes", "wide", "small"):
        assert torch.equal(there[name], state[name])
        assert there[name].dtype == state[name].dtype


# ---- what is no state dict of plain tensors


def quantized(side=8):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop them
        return torch.quantize_per_tensor(torch.randn(side, side), 0.1, 0, torch.qint8)


REFUSED = {
    "optimizer only": (lambda: {"optimizer": OPTIMIZER, "step": torch.tensor(3)}, "optimizer's? state|optimizer state"),
    "optimizer itself": (lambda: OPTIMIZER, "only optimizer state; save model.state_dict"),
    "quantized": (lambda: {"w": quantized()}, r"'w' is quantized \(torch.qint8\).*dequantize"),
    "sparse": (lambda: {"w": torch.eye(8).to_sparse()}, "'w' is torch.sparse_coo.*to_dense"),
    "meta": (lambda: {"w": torch.empty(8, 8, device="meta")}, "'w' has no data .meta device"),
    "numpy state dict": (lambda: {n: t.numpy() for n, t in STATE.items()}, r"NumPy arrays.*from_numpy"),
    "numpy matrix beside": (lambda: {"model": STATE, "table": np.zeros((64, 64))}, r"NumPy arrays.*\(table\).*--state"),
    "flat fsdp": (lambda: {"_fsdp_wrapped_module._flat_param": torch.randn(999)}, "flat parameter of FSDP"),
    "zero 3": (
        lambda: {"module": {"w": torch.empty(0)}, "param_shapes": [{"w": torch.Size([8, 8])}], "ds_version": "0.16"},
        "zero_to_fp32",
    ),
    "tensor parallel": (lambda: {"module": {"w": torch.randn(8, 8)}, "mp_world_size": 2}, "one of 2 parts"),
    "list of tensors": (lambda: list(STATE.values()), "tensors without names"),
    "one tensor": (lambda: torch.randn(8, 8), "single tensor"),
    "nothing": (lambda: {"epoch": 3}, "no state dict"),
    "empty": (dict, "no state dict"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_true_reason_in_one_line(kind, folder):
    make, says = REFUSED[kind]
    torch.save(make(), "c.pt")
    commands = [("pack", "c.pt"), ("estimate", "c.pt"), ("pack", "c.pt", "--model", "zoo.py:GPT", "--calib", "none")]
    for command in commands[: 2 if kind == "numpy matrix beside" else 3]:  # with a module nothing is in doubt
        assert re.search(says, run(*command, code=3).stderr), run(*command, code=3).stderr
    assert not (folder / "c.pgolf").exists()


def test_complex_tensors_are_kept(folder):
    state = {"freqs_cis": torch.polar(torch.ones(64, 24), torch.rand(64, 24)), "w": torch.randn(64, 64)}
    torch.save(state, "c.pt")
    assert torch.equal(pack("c.pt")[0]["freqs_cis"], state["freqs_cis"])


@pytest.mark.filterwarnings("ignore")
def test_programs_are_named(folder):
    linear = torch.nn.Linear(3, 3)
    torch.jit.save(torch.jit.script(linear), "t.pt")
    assert "is a TorchScript archive" in run("pack", "t.pt", code=3).stderr
    torch.export.save(torch.export.export(linear, (torch.ones(1, 3),)), "e.pt2")
    assert "is a program of torch.export" in run("pack", "e.pt2", code=3).stderr


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("m.gguf", b"GGUF\3\0\0\0" + bytes(99), "GGUF"),
        ("m.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        ("m.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        ("m.pt", b"<!DOCTYPE html><html></html>", "web page"),
        ("m.pt", b"", "empty file"),
        ("m.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_files_of_other_kinds_are_named(name, data, says, folder):
    (folder / name).write_bytes(data)
    assert says in run("pack", name, code=3).stderr


def test_an_artifact_and_arrays_are_named(folder):
    pgolf.pack({"w": torch.ones(3)}, "a.pgolf")
    assert "is a pgolf artifact already" in run("pack", "a.pgolf", "-o", "b.pgolf", code=3).stderr
    np.savez("w.npz", w=np.ones(3))
    assert "archive of NumPy arrays" in run("pack", "w.npz", code=3).stderr


# ---- in a process of its own


def test_by_the_installed_command(folder):
    torch.save(BESIDE["nanogpt"](), "c.pt")
    torch.save(SEVERAL["ema"](), "d.pt")
    pgolf_ = [sys.executable, "-m", "pgolf", "pack", "--calib", "none", "--budget", "20kB"]
    done = subprocess.run([*pgolf_, "c.pt"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert pgolf.load("c.pgolf").keys() == STATE.keys()
    done = subprocess.run([*pgolf_, "d.pt"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "Traceback" not in done.stderr


def test_a_dict_handed_over_is_searched_as_a_file_is(folder):
    pgolf.pack(BESIDE["step"](), "m.pgolf", budget=f"{FRUGAL}", rules="*.gain=keep", code=[])
    holds(pgolf.load("m.pgolf"), STATE)
    with pytest.raises(pgolf.errors.CheckpointError, match="several state dicts"):
        pgolf.pack(SEVERAL["ema"](), None)
    pgolf.pack(SEVERAL["ema"](), "m.pgolf", budget=FRUGAL, state="ema")
    holds(pgolf.load("m.pgolf"), AVERAGE)
    torch.save(SEVERAL["ema"](), "c.pt")
    assert pgolf.estimate("c.pt", budget=float(FRUGAL), state="ema").fits
