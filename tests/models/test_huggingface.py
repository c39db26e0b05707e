import json

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file

import pgolf
from pgolf.cli import main
from pgolf.errors import CheckpointError
from pgolf.models import checkpoint, huggingface
from tests.helpers import generator

CONFIG = {"architectures": ["TinyForCausalLM"], "model_type": "tiny", "tie_word_embeddings": True}


def weights():
    g = generator(4)
    return {
        "model.embed_tokens.weight": torch.randn(64, 48, generator=g).to(torch.bfloat16),
        "model.layers.0.mlp.up_proj.weight": torch.randn(96, 48, generator=g).to(torch.bfloat16),
        "model.norm.weight": torch.rand(48, generator=g).to(torch.bfloat16),
    }


def folder_of(path, sharded=False):
    """A folder as save_pretrained leaves it."""
    path.mkdir()
    state = weights()
    (path / "config.json").write_text(json.dumps(CONFIG, indent=2))
    (path / "tokenizer.json").write_text('{"model": {}}')
    (path / "generation_config.json").write_text("{}")
    if not sharded:
        save_file(state, path / "model.safetensors", {"format": "pt"})
        return path
    names = sorted(state)
    shards = {n: f"model-{i + 1:05d}-of-00002.safetensors" for n, i in zip(names, (0, 0, 1), strict=True)}
    for shard in set(shards.values()):
        save_file({n: state[n] for n in names if shards[n] == shard}, path / shard, {"format": "pt"})
    (path / huggingface.INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shards}))
    return path


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_packs_and_comes_back_as_one_that_from_pretrained_opens(tmp_path, sharded):
    original = folder_of(tmp_path / "my-model-v1.5", sharded)
    run("pack", original, "--method", "sdclip")
    run("unpack", tmp_path / "my-model-v1.5.pgolf", "-o", tmp_path / "back", "--like", original)
    back = tmp_path / "back"
    assert {p.name for p in back.iterdir()} == {
        "config.json", "tokenizer.json", "generation_config.json", "model.safetensors"
    }  # fmt: skip
    assert json.loads((back / "config.json").read_text()) == CONFIG
    with safe_open(back / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    loaded = pgolf.load(tmp_path / "my-model-v1.5.pgolf")
    assert found.keys() == weights().keys()
    for name, tensor in weights().items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], loaded[name])


def test_the_artifact_alone_gives_weights_and_configuration(tmp_path):
    run("pack", folder_of(tmp_path / "m"), "--method", "sdclip", "-o", tmp_path / "m.pgolf")
    run("unpack", tmp_path / "m.pgolf", "-o", tmp_path / "back")
    assert {p.name for p in (tmp_path / "back").iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == CONFIG
    assert "--force" in run("unpack", tmp_path / "m.pgolf", "-o", tmp_path / "back", code=2).stderr
    run("unpack", tmp_path / "m.pgolf", "-o", tmp_path / "back", "--force")


def test_a_tied_head_is_stored_once_under_the_embeddings_name(tmp_path):
    shared = torch.randn(64, 48, generator=generator())
    state = {"lm_head.weight": shared, "model.embed_tokens.weight": shared, "zz": torch.ones(3)}
    pgolf.pack(state, tmp_path / "m.pgolf", method="rtn")
    run("unpack", tmp_path / "m.pgolf", "-o", tmp_path / "back")
    assert checkpoint.read(tmp_path / "back").tensors.keys() == {"model.embed_tokens.weight", "zz"}
    kept, dropped = huggingface.untied(state)
    assert dropped == {"lm_head.weight": "model.embed_tokens.weight"}
    assert kept.keys() == {"model.embed_tokens.weight", "zz"}


def broken(path, change):
    original = folder_of(path, sharded=True)
    index = json.loads((original / huggingface.INDEX).read_text())
    change(original, index)
    (original / huggingface.INDEX).write_text(json.dumps(index))
    return original


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f, i: i["weight_map"].update(x="../../etc/passwd"), "not a file of the folder"),
        (lambda f, i: i["weight_map"].update(x="/etc/passwd"), "not a file of the folder"),
        (lambda f, i: i["weight_map"].update(x="model-00001-of-00002.safetensors"), "x is not in the shard"),
        (lambda f, i: (f / "model-00002-of-00002.safetensors").unlink(), "00002-of-00002"),
        (lambda f, i: i.pop("weight_map"), "no weight_map"),
        (lambda f, i: (f / "config.json").write_text("[1]"), "not a JSON object"),
    ],
)
def test_damaged_folders_are_named(tmp_path, change, says):
    with pytest.raises(CheckpointError, match=says):
        checkpoint.read(broken(tmp_path / "m", change))


def test_no_shard_is_offered_for_the_whole_where_the_index_is_missing(tmp_path):
    (folder_of(tmp_path / "m", sharded=True) / huggingface.INDEX).unlink()
    with pytest.raises(CheckpointError, match=r"its shards \(model-00001-of-00002.* want their index.json"):
        checkpoint.read(tmp_path / "m")


def test_the_hubs_cache_is_named_by_its_snapshot(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc123"
    snapshot.parent.mkdir(parents=True)
    folder_of(snapshot)
    with pytest.raises(CheckpointError, match=r"name the folder in it \(snapshots/abc123\)"):
        checkpoint.read(tmp_path / "models--a--b")
    (snapshot / "model.safetensors").rename(tmp_path / "blob")
    (snapshot / "model.safetensors").symlink_to(tmp_path / "blob")
    assert checkpoint.read(snapshot).tensors
    (tmp_path / "blob").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link to nothing: download it again"):
        checkpoint.read(snapshot)
    with pytest.raises(CheckpointError, match=r"hf download Qwen/Qwen2-0\.5B"):
        checkpoint.read("Qwen/Qwen2-0.5B")


def test_a_folder_without_weights_says_what_is_missing(tmp_path):
    assert "model.safetensors" in run("pack", tmp_path, code=3).stderr
    assert "--like" in run("unpack", pack_toy(tmp_path), "-o", tmp_path / "b", "--like", "nowhere", code=2).stderr


def pack_toy(folder):
    pgolf.pack({"w": torch.ones(4)}, folder / "t.pgolf")
    return folder / "t.pgolf"


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_that_lie_beside_those_that_were_read_are_named(tmp_path, sharded):
    state = weights()
    shard = "model-00001-of-00001.safetensors" if sharded else "model.safetensors"
    save_file(state, tmp_path / shard)
    if sharded:
        index = {"weight_map": dict.fromkeys(state, shard)}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("optimizer.pt", "rng_state_0.pth", "training_args.bin", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"of the trainer")
    assert not any("not read" in note for note in checkpoint.read(tmp_path).notes)
    torch.save({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "pytorch_model.bin")
    (note,) = (note for note in checkpoint.read(tmp_path).notes if "not read" in note)
    assert note.endswith("not read: pytorch_model.bin")
