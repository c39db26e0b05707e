"""A Hugging Face folder and a text file are enough, whatever the architecture."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import pgolf
from pgolf.cli import main
from pgolf.common import scratch
from pgolf.data.shards import write_shard
from pgolf.models import huggingface, transformers_model
from tests import folders

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own, which are none of ours
IDS = torch.arange(24)[None]
SHORT = ("--tokens", "512", "--seq-len", "16")
UNTRACED = {"mamba": ("A_log", "conv1d"), "rwkv": ("time_",)}  # no products of a weight: priced by their gradients


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    if code:
        assert len(result.stderr.strip().splitlines()) == 1
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of all architectures, notes.txt and more.jsonl."""
    made = tmp_path_factory.mktemp("folders")
    for name in folders.ARCHITECTURES:
        folders.folder(made / name, name)
    (made / "notes.txt").write_text(folders.text(), encoding="utf-8")
    lines = (json.dumps({"text": text, "id": n}) for n, text in enumerate(folders.text(9).splitlines()))
    (made / "more.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return made


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """An empty folder to work in, with names that lead to those of `place`."""
    for path in place.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def theirs_in_environment():
    return {
        name: value for name, value in os.environ.items() if name.startswith(("HF_", "TRANSFORMERS_", "TOKENIZERS_"))
    }


@pytest.mark.parametrize("name", folders.ARCHITECTURES)
def test_every_architecture_packs_scores_and_comes_back(name, here):
    before = torch.get_rng_state(), theirs_in_environment()
    packed = run("pack", name, "--budget", "40kB", "--calib", "notes.txt", *SHORT, "-o", "m.pgolf", "--json")
    assert all(
        line.startswith("quantize, ") for line in packed.stderr.splitlines()
    )  # on a machine with much else to do
    report = json.loads(packed.stdout)
    assert report["artifact_bytes"] <= 40_000
    assert report["measured"]["kl"] < max(2.5 * report["loss_rise"], 1e-4)
    scores = [
        json.loads(run("eval", *words, "--data", "more.jsonl", "--seq-len", "32", "--json").stdout)
        for words in ((name,), ("m.pgolf", "--tokenizer", name))
    ]
    assert scores[0]["bytes"] == sum(len(line.encode()) for line in folders.text(9).splitlines())
    assert scores[0]["documents"] == 9
    assert scores[1]["bpb"] == pytest.approx(scores[0]["bpb"], abs=0.05)
    assert scores[1]["perplexity"] == pytest.approx(torch.tensor(scores[1]["loss"]).exp().item(), rel=1e-4)
    config = huggingface.config(here / name)
    module = transformers_model.build(config, pgolf.load("m.pgolf"))
    with torch.no_grad():
        difference = (module(IDS).logits - folders.module(name)(IDS).logits).abs().mean()
    assert 0 < difference < 0.5 * folders.module(name)(IDS).logits.std()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == theirs_in_environment()


@pytest.mark.parametrize("name", folders.ARCHITECTURES)
def test_a_large_model_lies_in_files_and_computes_the_same(name, here, monkeypatch):
    source = transformers_model.read(here / name)
    usual = transformers_model.build(source.config, source.state_dict())
    for constant in ("MANY", "LARGE"):
        monkeypatch.setattr(scratch, constant, 1)
    filed = transformers_model.build(source.config, source.state_dict())
    theirs = dict(filed.named_parameters())
    assert theirs.keys() == dict(usual.named_parameters()).keys()  # what is tied is tied
    with torch.no_grad():
        assert torch.equal(filed(IDS).logits, usual(IDS).logits)
        for parameter in theirs.values():
            parameter += 1
    assert all(torch.equal(source.tensors[n], transformers_model.read(here / name).tensors[n]) for n in source.tensors)


@pytest.mark.parametrize("name", folders.ARCHITECTURES)
def test_every_matrix_is_followed(name, here):
    told = json.loads(run("calibrate", name, "--calib", "notes.txt", *SHORT, "-o", "c.safetensors", "--json").stdout)
    left = {n for n, word in told["coverage"].items() if word not in ("traced", "not a matrix")}
    assert {n for n in left if not any(part in n for part in UNTRACED.get(name, ()))} == set()


def test_text_of_its_own_and_a_bare_state_dict_with_the_folders_class(here):
    run("pack", "qwen3", "--budget", "40kB", "--tokens", "64", "-o", "own.pgolf")
    torch.save(folders.module("qwen3").state_dict(), "ckpt.pt")
    run("pack", "ckpt.pt", "--model", "qwen3", "--budget", "40kB", "--calib", "notes.txt", "--tokens", "300")
    run("eval", "ckpt.pgolf", "--data", "notes.txt", "--model", "qwen3", "--max-tokens", "200")


def test_estimate_sweep_and_diff_take_a_folder(here):
    run("estimate", "mixtral", "--budget", "60kB")
    run("calibrate", "mixtral", "--calib", "notes.txt", "--tokens", "256", "-o", "c.safetensors")
    run("estimate", "mixtral", "--budget", "60kB", "--curvature", "c.safetensors")
    run(
        "sweep", "mixtral", "--data", "more.jsonl", "--data", "notes.txt", "--calib", "notes.txt", "--tokens", "256",
        "--max-tokens", "300", "--bits", "4", "--baseline", "none", "--jobs", "1", "-o", "s",
    )  # fmt: skip
    found = json.loads((here / "s" / "results.json").read_text())
    assert found["points"][0]["tokens"] == found["before"]["tokens"] == 300


def test_a_module_of_transformers_packs_with_its_configuration(here):
    module = folders.module("gpt2")
    pgolf.pack(module, "m.pgolf", method="gptq", curvature=pgolf.calibrate(module, torch.arange(64)[None]))
    assert json.loads(run("eval", "m.pgolf", "--data", "more.jsonl", "--tokenizer", "gpt2", "--json").stdout)["bytes"]
    pgolf.pack("mixtral", "x.pgolf", method="rtn")
    assert "model.layers.0.mlp.experts.gate_up_proj" in pgolf.load("x.pgolf")  # as the module has it, not the folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_of_the_weights_is_kept(dtype, tmp_path):
    source = transformers_model.read(folders.folder(tmp_path / "m", "llama", dtype))
    assert {tensor.dtype for tensor in source.tensors.values()} == {dtype}
    assert transformers_model.build(source.config, source.state_dict()).dtype == dtype


def test_names_without_the_front_that_the_class_gives_them(here, tmp_path):
    """As the first GPT-2 was published; its masks too are none of the class's."""
    state, _ = huggingface.read_safetensors(here / "gpt2" / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    old = other(here, "gpt2", state=bare)
    found = transformers_model.read(old)
    assert found.tensors.keys() == transformers_model.read(here / "gpt2").tensors.keys()
    assert any("as in transformers' class" in note for note in found.notes)


def other(here, name, state=None, **config):
    """The folder `name` with other weights or another configuration."""
    made = here / "other"
    made.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (made / file).symlink_to(here / name / file)
    said = huggingface.config(here / name) | config
    (made / "config.json").write_text(json.dumps(said))
    if state is None:
        (made / "model.safetensors").symlink_to(here / name / "model.safetensors")
    else:
        save_file(state, made / "model.safetensors", {"format": "pt"})
    return made


def test_weights_that_are_missing_or_of_no_use_are_named(here):
    state, _ = huggingface.read_safetensors(here / "llama" / "model.safetensors")
    lost = {name: tensor for name, tensor in state.items() if name != "model.layers.1.mlp.up_proj.weight"}
    said = run("pack", other(here, "llama", lost), "--budget", "30kB", code=3).stderr
    assert "it lacks model.layers.1.mlp.up_proj.weight" in said
    shutil.rmtree(here / "other")
    more = state | {"model.layers.7.mlp.up_proj.weight": torch.zeros(48, 32)}
    said = run("eval", other(here, "llama", more), "--data", "notes.txt", code=3).stderr
    assert "of no use to the class: model.layers.7.mlp.up_proj.weight" in said
    shutil.rmtree(here / "other")
    wide = state | {"model.norm.weight": torch.zeros(33)}
    assert (
        "of another shape: model.norm.weight"
        in run("eval", other(here, "llama", wide), "--data", "notes.txt", code=3).stderr
    )


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "neverheard"}, "knows no architecture 'neverheard'"),
        ({"model_type": "vit"}, "vit is no causal language model"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized already (gptq)"),
        ({"num_attention_heads": 5}, "builds no model of config.json"),
        (
            {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}},
            "--trust-remote-code runs it",
        ),
    ],
)
def test_what_cannot_be_built_is_one_line(config, says, here):
    changed = other(here, "llama", **config)
    said = run("eval", changed, "--data", "notes.txt", code=3).stderr
    assert says in said
    assert says in run("pack", changed, "--budget", "30kB", "--calib", "notes.txt", code=3).stderr


def test_a_configuration_names_no_kernels(here):
    """They would be code from the hub, or from its cache."""
    changed = other(here, "llama", attn_implementation="somebody/kernels", _attn_implementation="somebody/kernels")
    module = transformers_model.build(huggingface.config(changed))
    assert module.config._attn_implementation == "sdpa"


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class Own(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_an_encoder_is_not_run_as_if_it_could_not_see_ahead(here):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertForMaskedLM(config).save_pretrained("bert")
    report = json.loads(run("pack", "bert", "--budget", "60kB", "--json").stdout)
    assert any("bert without is_decoder is an encoder" in note for note in report["notes"])
    assert report["loss_rise"] is None
    assert "a token sees those that follow" in run("calibrate", "bert", "-o", "k", code=3).stderr
    config.is_decoder = True
    transformers.BertLMHeadModel(config).save_pretrained("decoder")
    report = json.loads(run("pack", "decoder", "--budget", "60kB", "--tokens", "64", "--json").stdout)
    assert report["loss_rise"] is not None


def test_contexts_end_where_the_configuration_says(here):
    from pgolf.commands.models import usable_context

    model = folders.module("llama")
    assert usable_context(model, None) == model.config.max_position_embeddings == 64
    assert usable_context(model, None, 100) == 100, "rotary positions go on beyond, where that is asked for"


def test_a_pointer_of_git_lfs_is_no_damaged_file(here):
    made = other(here, "llama")
    (made / "model.safetensors").unlink()  # a link to the folder of all tests
    (made / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n")
    assert "git lfs pull" in run("pack", made, code=3).stderr


def test_code_that_lies_in_a_folder_is_run_on_demand_only(here, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(here / "cache"))
    auto = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    made = other(here, "llama", model_type="own", auto_map=auto)
    (made / "modeling_own.py").write_text(OWN_CODE)
    options = ("--calib", "notes.txt", "--tokens", "300", "-o", "own.pgolf")
    assert "--trust-remote-code" in run("pack", made, "--budget", "40kB", *options, code=3).stderr
    run("pack", made, "--budget", "40kB", *options, "--trust-remote-code")
    scored = ("--data", "more.jsonl", "--model", made)
    assert "--trust-remote-code" in run("eval", "own.pgolf", *scored, code=3).stderr
    run("eval", "own.pgolf", *scored, "--trust-remote-code")


def test_without_transformers_weights_pack_and_the_rest_names_the_extra(here, monkeypatch):
    for package in ("transformers", "tokenizers"):
        monkeypatch.setitem(sys.modules, package, None)
    report = json.loads(run("pack", "llama", "--budget", "40kB", "--json").stdout)
    assert any("pgolf[hf]" in note for note in report["notes"])
    for words in (
        ("pack", "llama", "--budget", "40kB", "--calib", "notes.txt"),
        ("eval", "llama", "--data", "notes.txt"),
    ):
        assert "pip install 'pgolf[hf]'" in run(*words, "--force" if words[0] == "pack" else "--json", code=3).stderr


@pytest.mark.parametrize(
    ("write", "words", "code", "says"),
    [
        ("", ("--data", "x.txt"), 3, "empty"),
        (b"caf\xe9", ("--data", "x.txt"), 3, "not UTF-8"),
        (b"\x28\xb5\x2f\xfdzstd", ("--data", "x.txt"), 3, "it is binary, or compressed"),
        ("a", ("--data", "llama"), 3, "llama is a folder: name the files in it"),
        ('{"txt": "a"}\n', ("--data", "x.jsonl"), 3, "line 1: has no field 'text'"),
        ('{"text": "a"}\n{"text": "\\ud800"}\n', ("--data", "x.jsonl"), 3, "line 2: holds half a surrogate"),
        ("not json\n", ("--data", "x.jsonl"), 3, "line 1: is not JSON"),
        ("a", ("--data", "nowhere.txt"), 3, "nowhere.txt: No such file"),
        ("a", ("--data", "x.txt", "--data", "val.bin"), 2, "given alone"),
        ("a", ("--data", "x.txt", "--bytes", "val.bin"), 2, "whose bytes are known"),
        ("[]", ("--data", "notes.txt", "--tokenizer", "x.json"), 3, "no tokenizer.json"),
    ],
)
def test_text_that_cannot_be_read_is_one_line(write, words, code, says, here):
    name = next((w for w in words if w.startswith("x.")), "x.txt")
    (here / name).write_bytes(write if isinstance(write, bytes) else write.encode())
    write_shard(here / "val.bin", np.arange(20))
    result = CliRunner().invoke(main, ["eval", "llama", *words])
    assert result.exit_code == code, result.output
    assert says in result.stderr.splitlines()[-1]


def test_a_folder_without_tokenizer_says_what_to_name(here):
    made = other(here, "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (made / name).unlink()
    for words in (("eval", made, "--data"), ("pack", made, "--budget", "30kB", "--calib")):
        result = CliRunner().invoke(main, [*map(str, words), "notes.txt"])
        assert result.exit_code == 2
        assert "--tokenizer" in result.stderr.splitlines()[-1]
    assert "brings no tokenizer" in run("eval", "llama", "--data", "notes.txt", "--tokenizer", made, code=3).stderr
