"""Out of an artifact again: from_pretrained of a folder that holds it, plain folders, GGUF files."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import pgolf
from pgolf.cli import main
from pgolf.loading import gguf_file, hf_folder
from pgolf.models import huggingface, transformers_model
from tests.helpers import generator

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

SMALL = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
KINDS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "mistral": lambda: transformers.MistralConfig(**SMALL, sliding_window=32),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=32),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=96, n_embd=48, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1
    ),
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, num_local_experts=4),
}
IDS = torch.arange(24)[None] % 96


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def made(kind: str, dtype: torch.dtype = torch.float32):
    """A model of a kind, with weights of our own generator."""
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(KINDS[kind]()).eval()
    g = generator(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.1 + (parameter.dim() == 1))
    return model.to(dtype)


def tokenizer(folder: Path) -> None:
    """A byte-level BPE of 96 tokens that splits as Qwen's does."""
    pattern = next(rule for rule, name in gguf_file.gguf_tokenizer.SPLITS.items() if name == "qwen2")
    vocabulary = {"<|end|>": 0, "<|stop|>": 1} | {chr(33 + i): 2 + i for i in range(90)} | {"ab": 92, "abc": 93}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    found = {
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a b", ["ab", "c"]], "byte_fallback": False},
        "added_tokens": [{"id": 0, "content": "<|end|>", "special": True}, {"id": 94, "content": "<tool>", "special": False}],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(found))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "add_bos_token": False}))


def packed(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    """(a folder as transformers writes it, with a tokenizer; its artifact)."""
    source, artifact = folder / kind, folder / f"{kind}.pgolf"
    made(kind, dtype).save_pretrained(source)
    tokenizer(source)
    pgolf.pack(source, artifact, method="rtn", rules=["*=int8"])
    return source, artifact


def loaded(folder: Path, **more: object):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_from_pretrained_gives_the_weights_of_the_artifact(tmp_path: Path, kind: str) -> None:
    source, artifact = packed(tmp_path, kind)
    run("unpack", artifact, "-o", tmp_path / "out", "--format", "pgolf-hf", "--like", source)
    run("unpack", artifact, "-o", tmp_path / "plain", "--format", "hf", "--like", source)
    assert (tmp_path / "out" / "model.pgolf").read_bytes() == artifact.read_bytes()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert (tmp_path / "out" / "tokenizer.json").exists()
    model, told = loaded(tmp_path / "out")
    plain, _ = loaded(tmp_path / "plain")
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, plain(IDS).logits)
    assert not hasattr(model.config, "quantization_config")
    ids = model.generate(IDS[:, :4], max_new_tokens=3, do_sample=False, pad_token_id=1)
    assert ids.shape[1] > 4


def test_the_dtype_is_the_checkpoints_or_the_one_asked_for(tmp_path: Path) -> None:
    source, artifact = packed(tmp_path, "llama", torch.bfloat16)
    hf_folder.write(tmp_path / "out", artifact, source)
    assert loaded(tmp_path / "out")[0].dtype == torch.bfloat16
    assert loaded(tmp_path / "out", dtype=torch.float16)[0].dtype == torch.float16
    model, _ = loaded(tmp_path / "out")
    model.save_pretrained(tmp_path / "again")  # a dense model is a plain one
    assert "pgolf" not in (tmp_path / "again" / "config.json").read_text()
    assert torch.equal(loaded(tmp_path / "again")[0].lm_head.weight, model.lm_head.weight)


def test_packed_on_a_processor_is_dense(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, artifact = packed(tmp_path, "llama")
    run("unpack", artifact, "-o", tmp_path / "out", "--format", "pgolf-hf", "--like", source, "--packed")
    model, _ = loaded(tmp_path / "out")
    assert type(model.lm_head) is torch.nn.Linear
    assert "weights are dense" in caplog.text


@pytest.mark.parametrize("packed_", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_device_map_puts_weights_where_it_says(tmp_path: Path, kind: str, packed_: bool, monkeypatch) -> None:
    pytest.importorskip("accelerate")
    source, artifact = packed(tmp_path, kind)
    hf_folder.write(tmp_path / "out", artifact, source, packed=packed_)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    usual, _ = loaded(tmp_path / "out")
    parts = {name: "cpu" for name, part in usual.named_modules() if not any(part.children()) and name}
    some = parts | {name: "disk" for name in parts if ".0." in name}  # what is tied goes together, or accelerate fails
    for device_map in ("auto", "cpu", {"": "cpu"}, torch.device("cpu"), some, dict.fromkeys(parts, "disk")):
        model, _ = loaded(tmp_path / "out", device_map=device_map, offload_folder=str(tmp_path / "offloaded"))
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, usual(IDS).logits), device_map
        del model
        gc.collect()
        assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("imports", ["import pgolf, transformers", "import transformers, pgolf", "import transformers"])
def test_pgolf_must_be_imported_before_or_after(tmp_path: Path, imports: str) -> None:
    source, artifact = packed(tmp_path, "llama")
    hf_folder.write(tmp_path / "out", artifact, source)
    script = (
        f"{imports}\nm = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r})\nprint(m.dtype)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if "pgolf" in imports:
        assert done.stdout == "torch.float32\n", done.stderr
    else:
        assert done.returncode != 0
        assert "model.pgolf.safetensors" in done.stderr.splitlines()[-1]


def test_no_weights_of_somebody_elses_are_touched(tmp_path: Path) -> None:
    source, artifact = packed(tmp_path, "llama")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    there = tmp_path / "another"
    shutil.copytree(source, there)
    for target, words in (
        (source, "the folder of --like, whose weights"),
        (there, "holds other weights (model.safetensors)"),
    ):
        said = run("unpack", artifact, "-o", target, "--format", "pgolf-hf", "--like", source, "--force", code=2).stderr
        assert words in said
        assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_a_folder_with_an_artifact_gives_its_rest_to_a_plain_one(tmp_path: Path) -> None:
    source, artifact = packed(tmp_path, "llama")
    hf_folder.write(tmp_path / "out", artifact, source)
    run("unpack", artifact, "-o", tmp_path / "plain", "--format", "hf", "--like", tmp_path / "out")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "quantization_config" not in config
    with torch.no_grad():
        assert torch.equal(loaded(tmp_path / "plain")[0](IDS).logits, loaded(tmp_path / "out")[0](IDS).logits)
    run("unpack", artifact, "-o", tmp_path / "out", "--format", "pgolf-hf", "--like", source, "--force")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_folder_with_an_artifact_is_read_as_any_other(tmp_path: Path, kind: str) -> None:
    """By pack, eval, diff, inspect, unpack and the functions of Python: what the artifact itself gives."""
    source, artifact = packed(tmp_path, kind)
    vocabulary = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    (source / "tokenizer.json").unlink()
    (source / "vocab.json").write_text(json.dumps(vocabulary))
    (source / "merges.txt").write_text("a b\nab c\n")
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    hf_folder.write(tmp_path / "out", artifact, source)
    out, state = tmp_path / "out", pgolf.load(artifact)
    assert all(torch.equal(tensor, state[name]) for name, tensor in pgolf.load(out).items())
    with pgolf.open(out) as file:
        assert file.keys() == list(state)
    assert list(pgolf.load(out, names="*norm*" if kind == "llama" else "*ln_f*"))
    module = transformers_model.build(huggingface.config(out))
    pgolf.load_module(out, module)
    assert all(torch.equal(tensor, state.get(name, tensor)) for name, tensor in module.state_dict().items())
    facts = json.loads(run("diff", artifact, out, "--json").stdout)
    assert facts["bytes"] == [artifact.stat().st_size] * 2
    assert not any(tensor["distance"] for tensor in facts["tensors"])
    assert json.loads(run("inspect", out, "--json").stdout)["bytes"] == artifact.stat().st_size
    run("unpack", out, "-o", tmp_path / "plain.safetensors")
    (tmp_path / "a.txt").write_text("abc" * 200)
    scores = [
        json.loads(run("eval", each, "--data", tmp_path / "a.txt", "--json", "--tokenizer", source, *more).stdout)
        for each, more in ((out, ()), (artifact, ("--model", source)))  # by its own class, and by the folder's
    ]
    assert scores[0]["bpb"] == scores[1]["bpb"]
    run("eval", source, "--against", out, "--data", tmp_path / "a.txt")
    words = ("--calib", tmp_path / "a.txt", "--tokens", "64", "--method", "rtn", "--set", "*=int8", "--json")
    again = json.loads(run("pack", out, "-o", tmp_path / "again.pgolf", *words).stdout)
    assert any("lost twice" in note for note in again["notes"])
    assert pgolf.load(tmp_path / "again.pgolf").keys() == state.keys()
    pgolf.pack(out, tmp_path / "python.pgolf", method="rtn", rules=["*=int8"])
    assert pgolf.load(tmp_path / "python.pgolf").keys() == state.keys()
    assert "is a pgolf artifact already" in run("pack", artifact, "-o", tmp_path / "no.pgolf", code=3).stderr


def test_a_damaged_artifact_is_said_so(tmp_path: Path) -> None:
    source, artifact = packed(tmp_path, "llama")
    hf_folder.write(tmp_path / "out", artifact, source)
    (tmp_path / "out" / "model.pgolf").write_bytes(artifact.read_bytes()[:-9])
    with pytest.raises(pgolf.errors.ArtifactError, match=r"model\.pgolf"):
        loaded(tmp_path / "out")


def test_an_artifact_of_no_known_model_needs_its_folder(tmp_path: Path) -> None:
    pgolf.pack({"w": torch.ones(48, 48)}, tmp_path / "a.pgolf", method="rtn")
    for kind, out in (("pgolf-hf", "out"), ("gguf", "out.gguf")):
        said = run("unpack", tmp_path / "a.pgolf", "-o", tmp_path / out, "--format", kind, code=2).stderr
        assert "add --like DIR" in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.pgolf"]


@pytest.mark.parametrize("form", ["F16", "Q8_0"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_gguf_holds_the_same_tensors(tmp_path: Path, kind: str, form: str) -> None:
    """Read back by the gguf package; rows of llama's q and k stand as neighbours that rotate together."""
    source, artifact = packed(tmp_path, kind)
    run("unpack", artifact, "-o", tmp_path / "m.gguf", "--like", source, "--gguf-type", form)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    held = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    state, width = pgolf.load(artifact), 32 if kind == "qwen3" else 16
    tied = kind == "qwen2"
    assert ("output.weight" in held) is not tied
    expected = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "blk.1.ffn_down.weight": state["model.layers.1.mlp.down_proj.weight"],
        "blk.0.attn_norm.weight": state["model.layers.0.input_layernorm.weight"],
    }
    q = state["model.layers.1.self_attn.q_proj.weight"].numpy()
    if kind in ("llama", "mistral"):
        rows = [head * width + half * width // 2 + i for head in range(4) for i in range(width // 2) for half in (0, 1)]
        q = q[rows]
    expected["blk.1.attn_q.weight"] = torch.from_numpy(q)
    for name, tensor in expected.items():
        tolerance = 1e-3 if form == "F16" or tensor.dim() == 1 else float(tensor.abs().max()) / 127
        np.testing.assert_allclose(held[name], tensor.numpy(), atol=tolerance)
    value = partial(field, reader)
    assert value("general.architecture") == {"mistral": "llama"}.get(kind, kind)
    assert value("tokenizer.ggml.pre") == "qwen2"
    assert len(value("tokenizer.ggml.tokens")) == 96
    assert value("tokenizer.ggml.merges") == ["a b", "ab c"]
    assert value("tokenizer.ggml.token_type")[:3] == [3, 1, 1]
    assert value("tokenizer.ggml.token_type")[93:] == [1, 4, 5]
    assert value("tokenizer.ggml.eos_token_id") == 0
    assert value(f"{value('general.architecture')}.context_length") == (32 if kind == "mistral" else 64)


def field(reader, name: str):
    return reader.fields[name].contents()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_transformers_reads_the_gguf_as_the_same_model(tmp_path: Path, kind: str) -> None:
    """A reader that is not ours, with a rotation of its own."""
    pytest.importorskip("accelerate", reason="transformers reads GGUF files only with it")
    source, artifact = packed(tmp_path, kind)
    run("unpack", artifact, "-o", source / "m.gguf", "--like", source)
    run("unpack", artifact, "-o", tmp_path / "plain", "--format", "hf", "--like", source)
    plain, _ = loaded(tmp_path / "plain")
    more = {"config": plain.config} if kind == "qwen3" else {}  # of a qwen3's keys, it overlooks the width of a head
    model = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file="m.gguf", dtype=torch.float32, **more)
    with torch.no_grad():
        one, other = (each(IDS).logits.log_softmax(-1) for each in (plain, model))
    assert float((one - other).abs().max()) < 0.01


def test_the_frequencies_of_llama_3(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    config = transformers.LlamaConfig(**SMALL, rope_parameters=rope)
    model = transformers.AutoModelForCausalLM.from_config(config)
    ((name, factors),) = gguf_file._rope_factors(config.to_dict())
    plain = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    assert name == "rope_freqs.weight"
    np.testing.assert_allclose(plain / factors, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_other_families_are_no_gguf(tmp_path: Path, kind: str) -> None:
    source, artifact = packed(tmp_path, kind)
    said = run("unpack", artifact, "-o", tmp_path / "m.gguf", "--like", source, code=2).stderr
    assert "is not of the llama family" in said
    assert not (tmp_path / "m.gguf").exists()


def test_what_gguf_cannot_say_is_refused(tmp_path: Path) -> None:
    source, artifact = packed(tmp_path, "llama")
    config = json.loads((source / "config.json").read_text())
    out = ("unpack", artifact, "-o", tmp_path / "m.gguf", "--like", source)
    found = json.loads((source / "tokenizer.json").read_text())
    for change, why in (
        ({"pre_tokenizer": {"type": "Whitespace"}}, "no name for"),
        ({"model": found["model"] | {"byte_fallback": True}}, "put the tokenizer.model beside it"),
    ):
        (source / "tokenizer.json").write_text(json.dumps(found | change))
        assert why in run(*out, code=2).stderr
    (source / "tokenizer.json").unlink()
    assert "brings no tokenizer" in run(*out, code=2).stderr
    (source / huggingface.CONFIG).write_text(json.dumps(config | {"hidden_act": "gelu"}))
    assert "has silu in its layers" in run(*out, code=2).stderr
    (source / huggingface.CONFIG).write_text(json.dumps(config | {"rope_parameters": {"rope_type": "longrope"}}))
    assert "'longrope'" in run(*out, code=2).stderr
    assert not list(tmp_path.glob("*.gguf"))
    assert not list(tmp_path.glob(".m.gguf*"))


@pytest.mark.parametrize(
    ("out", "kind", "why"),
    [
        ("m.zip", None, "must end in .safetensors, .pt or .gguf"),
        ("m.pt", "gguf", "writes a file whose name ends in .gguf"),
        ("a.pgolf", "hf", "is a file: --format hf writes a folder"),
    ],
)
def test_names_and_formats_that_do_not_agree(tmp_path: Path, out: str, kind: str | None, why: str) -> None:
    pgolf.pack({"w": torch.ones(48, 48)}, tmp_path / "a.pgolf", method="rtn")
    more = ("--format", kind) if kind else ()
    assert why in run("unpack", tmp_path / "a.pgolf", "-o", tmp_path / out, *more, "--force", code=2).stderr
